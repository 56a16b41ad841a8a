"""A storage that speaks S3, in a process of its own, behind a proxy; with a bucket in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from scale.storage_proxy import StorageProxy

BUCKET = "bench"


@contextmanager
def counted_storage(*, latency: float = 0.0) -> Iterator[StorageProxy]:
    """Yield the proxy before a new storage, with the environment that leads there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        for _ in range(600):
            try:
                urllib.request.urlopen(request, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        with StorageProxy(endpoint, latency=latency) as proxy:
            os.environ.update(
                AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1", AWS_ALLOW_HTTP="true",
                AWS_ENDPOINT_URL=proxy.url,
            )  # fmt: skip
            from featcache.system import objects

            objects._opened.cache_clear()
            yield proxy
    finally:
        server.kill()
        server.wait()
