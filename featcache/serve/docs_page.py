"""``/docs``: ``/openapi.json`` as a page to read, of three files that lie beside this one; nothing is fetched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response

_ASSETS = Path(__file__).with_name("assets")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def docs_router() -> APIRouter:
    """Return the endpoints of the page and its two files."""
    router = APIRouter(include_in_schema=False)
    for path, name in (("/docs", "docs.html"), ("/docs/docs.css", "docs.css"), ("/docs/docs.js", "docs.js")):
        router.add_api_route(path, _sender(name), methods=["GET"])
    return router


def _sender(name: str) -> Callable[[], Awaitable[Response]]:
    data = (_ASSETS / name).read_bytes()

    async def send() -> Response:
        return Response(data, media_type=f"{_TYPES[Path(name).suffix]}; charset=utf-8")

    return send
