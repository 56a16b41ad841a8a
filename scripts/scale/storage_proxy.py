"""A server between a program and a storage that counts requests, and answers some of them with an error."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Fate = Literal["pass", "refuse", "lose"]
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class StorageProxy:
    """Passes requests on to the storage at `endpoint`; `url` is its own address.

    `fate(method, path, number)` says of each what becomes of it: ``pass``; ``refuse``: a 503 instead; ``lose``: it is
    done, and the answer is a 503. `latency`: seconds that each takes longer. `counts`: requests by method and what for;
    `bytes_sent`, `bytes_received`: of bodies, as the program sees them.
    """

    def __init__(
        self, endpoint: str, *, fate: Callable[[str, str, int], Fate] = lambda *_: "pass", latency: float = 0.0
    ) -> None:
        self.target = urlsplit(endpoint)
        self.fate, self.latency = fate, latency
        self.dropped_headers: set[str] = set()  # in lower case, which do not reach the storage
        self.counts: Counter[str] = Counter()
        self.bytes_sent = self.bytes_received = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def reset(self) -> None:
        """Count from nothing."""
        with self.lock:
            self.counts.clear()
            self.bytes_sent = self.bytes_received = 0

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
            timeout = 30

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with proxy.lock:
                    number = sum(proxy.counts.values())
                    proxy.counts[_kind(self.command, self.path)] += 1
                    proxy.bytes_sent += len(body)
                if proxy.latency:
                    time.sleep(proxy.latency)
                fate = proxy.fate(self.command, self.path, number)
                if fate == "refuse":
                    self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                    return
                connection = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=60)
                connection.request(self.command, self.path, body=body, headers=self.kept_headers())
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                with proxy.lock:
                    proxy.bytes_received += len(data)
                if fate == "lose":
                    self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                    return
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


def _kind(method: str, path: str) -> str:
    """Return what a request is: its method, or LIST, which a storage bills as it does PUT."""
    return "LIST" if method == "GET" and ("list-type" in path or "prefix=" in path) else method
