"""What an error becomes: one line of JSON and a status; how ``/openapi.json`` describes it; for every application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from featcache.errors import FeatcacheError
from featcache.serve.refusals import RefusedError, status_of
from featcache.serve.service import json_response


def answer_errors(app: FastAPI) -> None:
    """Let `app` answer every error as ``{"error": "one line"}``, and describe none of the forms of FastAPI's own."""
    app.add_exception_handler(FeatcacheError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    app.add_exception_handler(Exception, _refuse_bug)
    _describe_errors_as_they_are(app)


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, FeatcacheError)
    headers = error.headers if isinstance(error, RefusedError) else {}
    return json_response({"error": " ".join(str(error).split())}, status=status_of(error), headers=headers)


def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = "the address must be one of those in /docs, this one is not" if error.status_code == 404 else error.detail
    return json_response({"error": said}, status=error.status_code, headers=dict(error.headers or {}))


def _refuse_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, given = first["loc"][-1], repr(first.get("input"))[:60]
    return json_response({"error": f"{name}: {first['msg'].lower()}, got {given}"}, status=400)


def _refuse_bug(request: Request, error: Exception) -> Response:
    return json_response({"error": "the server failed at this request, its log says where"}, status=500)


def _describe_errors_as_they_are(app: FastAPI) -> None:
    """Leave out of ``/openapi.json`` the form that FastAPI itself would answer wrong parameters in."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document.get("components", {}).get("schemas", {}).pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
