"""`make_application`: the endpoints and their description as one ASGI application."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version as version_of

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from featcache.serve.border import Border
from featcache.serve.classify import classify_router
from featcache.serve.docs_page import docs_router
from featcache.serve.error_answers import answer_errors
from featcache.serve.guard import check_allowed
from featcache.serve.protocol_v2 import v2_router
from featcache.serve.service import Service

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

    answer_errors(app)
    return Border(app, check=partial(check_allowed, token=token), answered=service.metrics.answered)
