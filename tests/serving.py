"""A server inside the test's own process, on a thread, and a client that speaks HTTP to it as strangers do."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export_models import saved_model, small_model

from featcache.bundle.exporting import export
from featcache.serve import ServeSettings, serve
from featcache.serve.server import Started


class Running:
    """The client's side of a server at `port`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def get_with_headers(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        return self.request("GET", path)

    def get(self, path: str) -> tuple[int, bytes]:
        return self.request("GET", path)[:2]

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        status, data, _ = self.request("POST", path, body, headers)
        return status, json.loads(data)

    def upload(self, path: str, files: Sequence[tuple[str, bytes]], field: str = "files") -> tuple[int, Any]:
        body, content_type = form(files, field)
        return self.post(path, body, {"Content-Type": content_type})

    def metric(self, line: str) -> float:
        """Return the value of the counter whose name and labels are `line`; 0 where it was never counted."""
        page = self.get("/metrics")[1].decode()
        return next((float(one.rpartition(" ")[2]) for one in page.splitlines() if one.startswith(line + " ")), 0.0)


def form(files: Sequence[tuple[str, bytes]], field: str = "files") -> tuple[bytes, str]:
    """Return a multipart body and its content type."""
    parts = []
    for name, data in files:
        head = f'--boundary\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), data, b"\r\n"]
    return b"".join([*parts, b"--boundary--\r\n"]), "multipart/form-data; boundary=boundary"


def exported(place: Path, name: str, *, classes: tuple[str, ...]) -> Path:
    """Return a bundle called `name` with these labels, of a small network with random weights."""
    model = saved_model(place / f"{name}-model", model=small_model(gain=200.0, classes=classes))
    export(model, out=place / name, formats=("onnx",))
    return place / name


@contextmanager
def on_a_thread(serve_until_stopped: Callable[[Callable[[Started], None]], None]) -> Iterator[Started]:
    """Give what a server says once it listens; it is stopped after the block as SIGTERM stops it."""
    begun: list[Started] = []
    errors: list[BaseException] = []
    settled = threading.Event()

    def ready(started: Started) -> None:
        begun.append(started)
        settled.set()

    def work() -> None:
        try:
            serve_until_stopped(ready)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            errors.append(error)
        finally:
            settled.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert settled.wait(60)
    try:
        if begun:
            yield begun[0]
    finally:
        if begun:
            begun[0].stop()
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@contextmanager
def running(
    bundles: Sequence[Path | str], *, settings: ServeSettings | None = None, **options: Any
) -> Iterator[Running]:
    """Give the client of a running server; by default it looks for new bundles often."""
    bounds = settings or ServeSettings(reload_seconds=0.05)
    with on_a_thread(lambda ready: serve(bundles, port=0, ready=ready, settings=bounds, **options)) as started:
        yield Running(int(started.url.rpartition(":")[2]))
