"""A server between a program and a storage that counts requests, delays them, and answers some of them itself."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered in the storage's place."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/xml"),)


SLOW_DOWN = Answer(503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
Fate = Literal["pass", "lose"] | Answer


class StorageProxy:
    """Passes requests on to the storage at `endpoint`; `url` is its own address.

    `fate(method, path, number)` says of each what becomes of it: ``pass``; an `Answer` instead; ``lose``: it is done,
    and the answer is a 503. `path` comes with its query, decoded. `latency`: seconds that each takes longer.
    `dropped_headers`: in lower case, which do not reach the storage.

    `requests`: (method, path) of each; `counts`: how many by method, LIST among them; `bytes_sent`, `received`: of
    bodies, as the program sees them, those received by method as well.
    """

    def __init__(self, endpoint: str, *, latency: float = 0.0) -> None:
        self.target = urlsplit(endpoint)
        self.lock = threading.Lock()
        self.undisturbed()
        self.latency = latency
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def undisturbed(self) -> None:
        """Pass everything on at once, and count from nothing."""
        self.fate: Callable[[str, str, int], Fate] = lambda method, path, number: "pass"
        self.latency = 0.0
        self.dropped_headers: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Count from nothing."""
        with self.lock:
            self.requests: list[tuple[str, str]] = []
            self.counts: Counter[str] = Counter()
            self.received: Counter[str] = Counter()
            self.bytes_sent = 0

    @property
    def bytes_received(self) -> int:
        """Bytes of all answers."""
        return self.received.total()

    def read(self, suffix: str) -> list[str]:
        """Return the paths of the objects whose bytes were asked for and that end with `suffix`."""
        paths = [path.partition("?")[0] for method, path in self.requests if method == "GET"]
        return [path for path in paths if path.endswith(suffix)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind, path = _kind(self.command, self.path), unquote(self.path)
                with proxy.lock:
                    number = len(proxy.requests)
                    proxy.requests.append((self.command, path))
                    proxy.counts[kind] += 1
                    proxy.bytes_sent += len(body)
                if proxy.latency:
                    time.sleep(proxy.latency)
                fate = proxy.fate(self.command, path, number)
                if isinstance(fate, Answer):
                    self.answer(fate.status, dict(fate.headers), fate.body)
                    return
                connection = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=60)
                connection.request(self.command, self.path, body=body, headers=self.kept_headers())
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fate == "lose":
                    self.answer(SLOW_DOWN.status, dict(SLOW_DOWN.headers), SLOW_DOWN.body)
                    return
                with proxy.lock:
                    proxy.received[kind] += len(data)
                self.answer(answer.status, dict(answer.getheaders()), data)

            def kept_headers(self) -> dict[str, str]:
                return {
                    name: value for name, value in self.headers.items() if name.lower() not in proxy.dropped_headers
                }

            def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", headers.get("content-length"))
                self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 (as http.server asks)

            def log_message(self, format: str, *values: Any) -> None:
                return

        return Handler


class _Server(ThreadingHTTPServer):
    """A server that ends with its process, and says nothing of programs that were killed while they asked."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _kind(method: str, path: str) -> str:
    """Return what a request is: its method, or LIST, which a storage bills as it does PUT."""
    return "LIST" if method == "GET" and ("list-type" in path or "prefix=" in path) else method
