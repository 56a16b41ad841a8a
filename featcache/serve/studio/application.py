"""`make_application`: the page and the addresses under ``/api`` as one ASGI application."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version as version_of

from fastapi import FastAPI
from starlette.types import ASGIApp

from featcache.serve.border import Border
from featcache.serve.docs_page import docs_router
from featcache.serve.error_answers import answer_errors
from featcache.serve.guard import check_allowed
from featcache.serve.studio.datasets_api import datasets_router
from featcache.serve.studio.entrance import Entrance
from featcache.serve.studio.limits import BodyLimit
from featcache.serve.studio.page import page_router
from featcache.serve.studio.state import Studio
from featcache.serve.studio.web_frames import WebFiles
from featcache.serve.studio.workspace_api import workspace_router

_ABOUT = (
    "A workspace of images, labels, heads and bundles. Whatever the page does, these addresses do. "
    'An error is one line: {"error": …}.'
)


def make_application(studio: Studio, *, token: str | None = None) -> ASGIApp:
    """Return the ASGI application of `studio`; `token`: what every request must bring, None: nothing."""
    app = FastAPI(
        title="featcache studio", version=version_of("featcache"), description=_ABOUT, docs_url=None, redoc_url=None
    )
    app.include_router(datasets_router(studio))
    app.include_router(workspace_router(studio))
    app.include_router(page_router())
    app.include_router(docs_router())
    answer_errors(app)
    bounded = BodyLimit(app, is_file=lambda path: path.startswith("/api/images/"))
    border = Border(bounded, check=partial(check_allowed, token=token))
    return WebFiles(border if token is None else Entrance(border, token), studio.frames)
