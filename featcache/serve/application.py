"""`make_application`: the endpoints, what an error becomes, and the description of it all, as one ASGI application."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from featcache.errors import FeatcacheError
from featcache.serve.border import Border
from featcache.serve.classify import classify_router
from featcache.serve.docs_page import docs_router
from featcache.serve.protocol_v2 import v2_router
from featcache.serve.refusals import RefusedError, status_of
from featcache.serve.service import Service, json_response

_ABOUT = 'Classifiers that were trained on cached features and exported as bundles. An error is one line: {"error": …}.'


def make_application(service: Service, *, token: str | None = None) -> Border:
    """Return the ASGI application that answers for `service`; `token`: what every request must bring, None: nothing."""
    app = FastAPI(
        title="featcache serve", version=version_of("featcache"), description=_ABOUT, docs_url=None, redoc_url=None
    )
    app.include_router(classify_router(service))
    app.include_router(v2_router(service))
    app.include_router(docs_router())

    @app.get("/metrics", tags=["operation"], summary="Counters, for Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    async def metrics() -> Response:
        return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    app.add_exception_handler(FeatcacheError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    app.add_exception_handler(Exception, _refuse_bug)
    _describe_errors_as_they_are(app)
    return Border(app, service.metrics, token=token)


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
