"""az:// against Microsoft's own emulator, where it is installed: images and a cache there, as on S3.

npm install azurite; FEATCACHE_AZURITE=node_modules/.bin/azurite-blob scripts/test tests/cache/test_azure.py
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from fake import build

import featcache
from featcache.system.objects import ObjectPath

ACCOUNT = "devstoreaccount1"  # the emulator's own, with the key that its documentation prints
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-08-06"
PATIENCE_SECONDS = 30


def make_container(address: str, name: str) -> None:
    """Make a container, as soon as the server answers; the request is signed as Azure's SharedKey says."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        date = formatdate(usegmt=True)
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        text = "\n".join(["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{VERSION}", resource])
        digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date, "x-ms-version": VERSION, "Content-Length": "0",
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
        }  # fmt: skip
        request = urllib.request.Request(f"{address}/{name}?restype=container", method="PUT", headers=headers)
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.HTTPError:
            raise
        except OSError:  # it is not there yet
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty container, and the environment that leads there."""
    pytest.importorskip("obstore")
    program = os.environ.get("FEATCACHE_AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed (npm install azurite), nor named in FEATCACHE_AZURITE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(tmp_path / "azurite")]
    server = subprocess.Popen([program, *options, "--blobPort", str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    try:
        make_container(address, "pets")
        for name, value in {"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": KEY, "ENDPOINT": address}.items():
            monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
        monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")
        yield "az://pets"
    finally:
        server.terminate()
        server.wait()


def test_images_and_cache_there_equal_those_on_a_disk(container: str, photos: Path, tmp_path: Path) -> None:
    """The same rows, labels and digest; a build with nothing to do extracts nothing; every stored byte is checked."""
    for file in photos.rglob("*.jpg"):
        (ObjectPath(f"{container}/photos") / file.relative_to(photos).as_posix()).write_bytes(file.read_bytes())
    there = f"{container}/cache"
    first = build(f"{container}/photos", there)  # type: ignore[arg-type]
    assert (first.extracted, first.failed) == (24, 0)
    assert build(f"{container}/photos", there).extracted == 0  # type: ignore[arg-type]
    build(photos, tmp_path / "here")
    with featcache.open_cache(there) as remote, featcache.open_cache(tmp_path / "here") as local:
        assert remote.content_digest() == local.content_digest()
        assert remote.samples().classes == local.samples().classes
    assert featcache.verify(there).ok
