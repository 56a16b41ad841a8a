"""A headless Chromium on a page that does what it is asked: the runtime of what is exported for browsers.

The page is served on the loopback address under a random path, and the browser can reach nothing else: any other name
fails to resolve.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from featcache.errors import DependencyError, VerificationError

_DRIVER = Path(__file__).parent.parent / "drivers" / "browser"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--mute-audio",
)  # fmt: skip
_NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
          ".json": "application/json", ".wasm": "application/wasm"}  # fmt: skip
_POLL_SECONDS = 20.0
_PATIENCE_SECONDS = 300.0


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None: the variable ``FEATCACHE_CHROMIUM``, else the PATH."""
    named = os.environ.get("FEATCACHE_CHROMIUM")
    return next((path for name in [named, *_NAMES] if name and (path := shutil.which(name))), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a connection ends when the browser does; a page that misses an answer is noticed by `call`."""


class Browser:
    """A running browser; `folders` are what its page can read, by name. Use as a context manager, which ends it.

    Not thread-safe: one call at a time.
    """

    def __init__(self, folders: Mapping[str, Path], *, arguments: tuple[str, ...] = ()) -> None:
        program = find_chromium()
        if program is None:
            raise DependencyError("a Chromium must be on the PATH or named in FEATCACHE_CHROMIUM, none is")
        self._work: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[bytes] = queue.Queue()
        self._token = secrets.token_urlsafe(12)
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler({"driver": _DRIVER, **folders}))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._profile = tempfile.TemporaryDirectory(prefix="featcache-browser-", ignore_cleanup_errors=True)
        # the sandbox of a browser that root starts cannot be set up
        sandbox = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
        where = f"--user-data-dir={self._profile.name}"
        self._process = subprocess.Popen(
            [program, *_QUIET, _NO_NETWORK, *sandbox, where, *arguments, f"{self.address}/driver/index.html"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        """Return the root of what is served, below which are the folders by name."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self._token}"

    def call(self, module: str, name: str, *, payload: bytes = b"", **values: Any) -> tuple[dict[str, Any], bytes]:
        """Return what the function `name` of the JavaScript `module` (such as ``driver/classify.js``) answers.

        Raises `VerificationError` with the page's own words where it fails, and where the browser ends.
        """
        head = json.dumps({"module": module, "name": name, "values": values}).encode()
        self._work.put(head + b"\n" + payload)
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                answer, _, data = self._answers.get(timeout=0.5).partition(b"\n")
                break
            except queue.Empty:
                if self._process.poll() is not None:
                    raise VerificationError(
                        f"the browser must stay open to {name}, it ended with status {self._process.returncode}"
                    ) from None
                if time.monotonic() > end:
                    raise VerificationError(
                        f"the browser must {name} within {_PATIENCE_SECONDS:.0f} s, it did not"
                    ) from None
        values = json.loads(answer)
        if "error" in values:
            raise VerificationError(f"the browser must {name} this model, it says: {values['error']}")
        return values["value"], data

    def close(self) -> None:
        """End the browser and the server."""
        self._closed.set()
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handler(self, folders: Mapping[str, Path]) -> type[BaseHTTPRequestHandler]:
        browser = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = self.path.split("?")[0].strip("/").split("/")
                if parts[0] != browser._token:
                    self.answer(404)
                elif parts[1:] == ["work"]:
                    self.answer(*browser._next())
                elif len(parts) > 2 and parts[1] in folders:
                    path = folders[parts[1]].joinpath(*parts[2:])
                    known = ".." not in parts and path.is_file()
                    self.answer(*((200, path.read_bytes(), _TYPES.get(path.suffix)) if known else (404,)))
                else:
                    self.answer(404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.strip("/") == f"{browser._token}/answer":
                    browser._answers.put(body)
                    self.answer(200)
                else:
                    self.answer(404)

            def answer(self, status: int, body: bytes = b"", kind: str | None = None) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind or "application/octet-stream")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True  # the browser is gone

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing: what a page asks for is no news."""

        return Handler

    def _next(self) -> tuple[int, bytes]:
        """Return the next request for the page, or a status that says to ask again, or never again."""
        end = time.monotonic() + _POLL_SECONDS
        while not self._closed.is_set() and time.monotonic() < end:
            try:
                return 200, self._work.get(timeout=0.25)
            except queue.Empty:
                continue
        return (410 if self._closed.is_set() else 204), b""
