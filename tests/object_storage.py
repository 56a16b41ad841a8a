"""A storage that speaks S3 for the tests: moto's server in this process, and the environment that leads to it."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from featcache.system.objects import ObjectPath

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "a secret of the tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
Answer = tuple[str, list[tuple[str, str]], bytes]


class Faults:
    """What stands before the server: it counts requests, waits, and answers some of them itself.

    `requests`: (method, path with query) of each. `busy_every`: each so many-th is answered 503, 0: none. `delay`:
    seconds before each answer. `answer`: asked with the WSGI environment of each request, which it answers where it
    returns something (status, headers, body). `reset` puts all that back.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._lock = application, threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Count from nothing and disturb nothing."""
        self.requests: list[tuple[str, str]] = []
        self.busy_every = 0
        self.delay = 0.0
        self.answer: Callable[[dict[str, Any]], Answer | None] = lambda environ: None

    def read(self, suffix: str) -> list[str]:
        """Return the paths of the objects whose bytes were asked for and that end with `suffix`."""
        paths = [path.partition("?")[0] for method, path in self.requests if method == "GET"]
        return [path for path in paths if path.endswith(suffix)]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        with self._lock:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else "")))
            busy = bool(self.busy_every) and len(self.requests) % self.busy_every == 0
        if self.delay:
            time.sleep(self.delay)
        answer = self.answer(environ)
        if busy:
            answer = ("503 Slow Down", [], b"<Error><Code>SlowDown</Code></Error>")
        if answer is None:
            return self._application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, headers, body = answer
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]


@contextmanager
def s3_server() -> Iterator[tuple[str, Faults]]:
    """Start a server that speaks S3; give its address and what stands before it."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'featcache[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    faults = Faults(server._server.app)
    server._server.app = faults
    yield f"http://{host}:{port}", faults
    server.stop()


@pytest.fixture(scope="session")
def s3_before() -> Iterator[tuple[str, Faults]]:
    """Return the address of a server that speaks S3, one for all tests of this process, and what stands before it."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'featcache[objects]'")
    with s3_server() as (address, faults):
        before = dict(os.environ)
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=address)
        yield address, faults
        for name in (*CREDENTIALS, "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@pytest.fixture(scope="session")
def s3_endpoint(s3_before: tuple[str, Faults]) -> str:
    """Return the address of the server."""
    return s3_before[0]


@pytest.fixture
def s3_faults(s3_before: tuple[str, Faults]) -> Iterator[Faults]:
    """Return what stands before the server, to count and to disturb; undisturbed again after the test."""
    s3_before[1].reset()
    yield s3_before[1]
    s3_before[1].reset()


@pytest.fixture
def bucket(s3_endpoint: str) -> ObjectPath:
    """Return a new, empty bucket as ``s3://NAME``."""
    return new_bucket(s3_endpoint)


def new_bucket(endpoint: str) -> ObjectPath:
    """Make a bucket on the server at `endpoint`."""
    import urllib.request

    name = f"tests-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=30).close()
    return ObjectPath(f"s3://{name}")


def make_public(endpoint: str, place: ObjectPath) -> str:
    """Open an object to everyone; return its URL for the web."""
    import urllib.parse
    import urllib.request

    url = f"{endpoint}/{str(place).removeprefix('s3://').partition('/')[0]}/{urllib.parse.quote(place.key)}"
    signed = "AWS4-HMAC-SHA256 Credential=tests/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    headers = {"x-amz-acl": "public-read", "Authorization": signed}
    urllib.request.urlopen(urllib.request.Request(f"{url}?acl", method="PUT", headers=headers), timeout=30).close()
    return url
