"""The page: files that lie beside this one, each under its own address; nothing is fetched from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

_ASSETS = Path(__file__).with_name("assets")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
          ".svg": "image/svg+xml"}  # fmt: skip


def page_router() -> APIRouter:
    """Return the addresses of the page's files; what is no file there has none."""
    router = APIRouter(include_in_schema=False)
    for file in sorted(_ASSETS.rglob("*.*")):
        name = file.relative_to(_ASSETS).as_posix()
        router.add_api_route("/" if name == "index.html" else f"/assets/{name}", _sender(file), methods=["GET"])
    return router


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    data = file.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=f"{_TYPES[file.suffix]}; charset=utf-8", headers=headers)

    return send
