"""A storage that speaks S3 for the tests: moto's server in this process, a proxy before it, and the environment."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from scale.storage_proxy import SLOW_DOWN, Answer, Fate, StorageProxy

from featcache.system.objects import ObjectPath

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "a secret of the tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
OTHER_REGION = Answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>")
__all__ = [
    "CREDENTIALS", "DENIED", "OTHER_REGION", "SLOW_DOWN", "Answer", "Fate", "StorageProxy", "bucket", "make_public",
    "new_bucket", "s3_before", "s3_endpoint", "s3_proxy", "s3_server",
]  # fmt: skip


@contextmanager
def s3_server() -> Iterator[StorageProxy]:
    """Start a server that speaks S3; give the proxy before it."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'featcache[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with StorageProxy(f"http://{host}:{port}") as proxy:
        yield proxy
    server.stop()


@pytest.fixture(scope="session")
def s3_before() -> Iterator[StorageProxy]:
    """Return the proxy before a server that speaks S3, one for all tests of this process."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'featcache[objects]'")
    with s3_server() as proxy:
        before = dict(os.environ)
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=proxy.url)
        yield proxy
        for name in (*CREDENTIALS, "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


@pytest.fixture(scope="session")
def s3_endpoint(s3_before: StorageProxy) -> str:
    """Return the address of the server."""
    return s3_before.url


@pytest.fixture
def s3_proxy(s3_before: StorageProxy) -> Iterator[StorageProxy]:
    """Return the proxy before the server, to count and to disturb; undisturbed again after the test."""
    s3_before.undisturbed()
    yield s3_before
    s3_before.undisturbed()


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


@contextmanager
def other_server(program: str, folder: Path) -> Iterator[str]:
    """Start another server that speaks S3 over `folder`; give its address. Skips where it is not installed."""
    command = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if command is None:
        pytest.skip(f"{program} is not installed: pip install {program}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = {
        "localbucket": [str(folder), "--port", port],
        "nanio": ["serve", "--data-dir", str(folder), "--host", "127.0.0.1", "--port", port],
    }[program]
    keys = {
        "NANIO_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "NANIO_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    }
    server = subprocess.Popen(
        [command, *arguments], env=os.environ | keys, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
