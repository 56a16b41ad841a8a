"""A storage that speaks S3 for the tests: moto's server in this process, and the environment that leads to it."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator

import pytest

from featcache.system.objects import ObjectPath

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "a secret of the tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Return the address of a server that speaks S3, one for all tests of this process."""
    pytest.importorskip("obstore", reason="obstore is not installed: pip install 'featcache[objects]'")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'featcache[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    yield os.environ["AWS_ENDPOINT_URL"]
    for name in (*CREDENTIALS, "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> ObjectPath:
    """Return a new, empty bucket as ``s3://NAME``."""
    return new_bucket(s3_endpoint)


def new_bucket(endpoint: str) -> ObjectPath:
    """Return a new, empty bucket of the storage at `endpoint`."""
    import urllib.request

    name = f"tests-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=30).close()
    return ObjectPath(f"s3://{name}")
