"""Files read and hashed: what is no regular file is said at once, and bytes are those of the digest that is known."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from featcache.errors import ImageError
from featcache.images.read import hash_files, read_image_bytes


def test_read_image_bytes_of_a_named_pipe_raises_at_once(tmp_path: Path) -> None:
    """Opening a pipe nobody writes to would block for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons: list[str] = []

    def read() -> None:
        try:
            read_image_bytes(tmp_path / "pipe.jpg")
        except ImageError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert reasons == ["is not a regular file"]


def test_read_image_bytes_with_another_digest_raises(tmp_path: Path) -> None:
    """A file that was changed is not the image that was listed."""
    (tmp_path / "a.jpg").write_bytes(b"one")
    digest = hashlib.sha256(b"one").digest()
    assert read_image_bytes(tmp_path / "a.jpg", digest=digest) == b"one"
    (tmp_path / "a.jpg").write_bytes(b"two")
    with pytest.raises(ImageError, match="has changed"):
        read_image_bytes(tmp_path / "a.jpg", digest=digest)


def test_hash_files_tells_digests_and_failures_apart(tmp_path: Path) -> None:
    """More files than a window of the threads, some of which cannot be read: each answer stands at its own place."""
    paths = []
    for number in range(1500):
        paths.append(str(tmp_path / f"{number:04}.jpg"))
        if number % 100 != 7:
            Path(paths[-1]).write_bytes(str(number).encode())
    hashed = hash_files(paths)
    assert list(hashed.failures) == list(range(7, 1500, 100))
    assert all("No such file" in reason for reason in hashed.failures.values())
    for number in range(1500):
        wanted = bytes(32) if number % 100 == 7 else hashlib.sha256(str(number).encode()).digest()
        assert hashed.digests[number].tobytes() == wanted
        assert hashed.readable[number] == (number % 100 != 7)
    assert hash_files([]).digests.shape == (0, 32)
