"""A bundle's own web export, run in the page without being trusted: a frame whose origin is nobody's.

A bundle may come from strangers, and its scripts would be the page's own if they ran in it: they could label, ship and
read the workspace. So they run in a sandboxed frame (``sandbox allow-scripts``: an origin that equals no other), which
can fetch nothing but the files of this bundle and is spoken to by messages. WebAssembly wants ``wasm-unsafe-eval``: it
is allowed there alone. Such a frame sends no cookie and the origin ``null``, which the border rightly refuses, so its
files have addresses of their own that nobody can guess, and stand before the border.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from featcache.runtime.bundle import open_bundle
from featcache.serve.studio.workspace import Workspace

PREFIX = "/web/"
_FRAME = Path(__file__).with_name("frame")
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript",
          ".json": "application/json", ".wasm": "application/wasm"}  # fmt: skip
_HEADERS = {
    "content-security-policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; "
        "frame-ancestors 'self'; base-uri 'none'"
    ),
    "access-control-allow-origin": "*",  # of nobody's origin, scripts and files come only so; the address is the secret
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_MOST_OPEN = 8


@dataclass(frozen=True, slots=True)
class _Frame:
    bundle: str
    stamp: int
    files: dict[str, Path]


class WebFrames:
    """The frames of the bundles of `workspace` that have a web export. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._frames: dict[str, _Frame] = {}

    def address(self, bundle: str) -> str | None:
        """Return the address of the frame that runs the web export of a bundle, None where it has none.

        Raises `MissingError` for a bundle that is not there, `CorruptError` where its files are not the ones it states.
        """
        path = self._workspace.existing("bundle", bundle)
        stamp = (path / "manifest.json").stat().st_mtime_ns
        with self._lock:
            for token, frame in self._frames.items():
                if (frame.bundle, frame.stamp) == (bundle, stamp):
                    return f"{PREFIX}{token}/frame.html"
        opened = open_bundle(path)
        if "web" not in opened.formats:
            return None
        root = Path(PurePosixPath(opened.formats["web"][0]).parts[0])
        files = {file.relative_to(path / root).as_posix(): file for file in opened.files("web")}
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._frames[token] = _Frame(bundle, stamp, files)
            while len(self._frames) > _MOST_OPEN:
                del self._frames[next(iter(self._frames))]
        return f"{PREFIX}{token}/frame.html"

    def file(self, path: str) -> Path | None:
        """Return the file at an address, None where there is none."""
        token, _, name = path.removeprefix(PREFIX).partition("/")
        with self._lock:
            frame = self._frames.get(token)
        if frame is None:
            return None
        if name in ("frame.html", "frame.js"):
            return _FRAME / name
        return frame.files.get(name.removeprefix("bundle/")) if name.startswith("bundle/") else None


class WebFiles:
    """The application `inner`, with the files of `frames` before it."""

    def __init__(self, inner: ASGIApp, frames: WebFrames) -> None:
        self._inner, self._frames = inner, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._inner(scope, receive, send)
            return
        file = self._frames.file(scope["path"]) if scope["method"] == "GET" else None
        answer = Response(status_code=404, headers=_HEADERS)
        if file is not None and file.is_file():
            kind = _TYPES.get(file.suffix, "application/octet-stream")
            answer = Response(file.read_bytes(), media_type=kind, headers=_HEADERS)
        await answer(scope, receive, send)
