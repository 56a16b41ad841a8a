"""Files of an artefact: plain ones of its own directory, of the bytes that are stated for them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from featcache.errors import CorruptError, MissingError
from featcache.system.members import checked_member, member_path, read_member

DIGEST = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact, and beside it what is not of it."""
    (tmp_path / "outside").write_bytes(b"weights")
    place = tmp_path / "artefact"
    (place / "deeper").mkdir(parents=True)
    (place / "deeper" / "model.bin").write_bytes(b"weights")
    return place


def test_a_plain_file_is_read(folder: Path) -> None:
    """Also through a link to the artefact, and a link inside it."""
    assert read_member(folder, "deeper/model.bin", renew="again", sha256=DIGEST) == b"weights"
    (folder.parent / "link").symlink_to(folder)
    assert checked_member(folder.parent / "link", "deeper/model.bin", renew="again", sha256=DIGEST).is_file()
    (folder / "same").symlink_to("deeper/model.bin")
    assert read_member(folder, "same", renew="again") == b"weights"


@pytest.mark.parametrize("read", [read_member, checked_member])
def test_other_bytes_are_refused(folder: Path, read: object) -> None:
    """A digest that is no text matches nothing."""
    (folder / "deeper" / "model.bin").write_bytes(b"Weights")
    with pytest.raises(CorruptError, match=r"must have the sha256 stated for it.* or make it again"):
        read(folder, "deeper/model.bin", renew="make it again", sha256=DIGEST)
    with pytest.raises(CorruptError, match="sha256"):
        checked_member(folder, "deeper/model.bin", renew="make it again", sha256=None)


@pytest.mark.parametrize("where", ["deeper/model.bin", "deeper"])
def test_a_link_that_leaves_the_directory_is_refused(folder: Path, where: str) -> None:
    """Of the file, or of a folder on the way."""
    outside = folder.parent / ("outside" if where.endswith("bin") else "other")
    if where == "deeper":
        (folder / "deeper").rename(outside)
    else:
        (folder / where).unlink()
    (folder / where).symlink_to(outside)
    with pytest.raises(CorruptError, match="a link that leaves it; make it again"):
        member_path(folder, "deeper/model.bin", renew="make it again")


def test_what_is_no_plain_file_is_refused(folder: Path) -> None:
    """Nothing, a folder, a pipe that would wait for ever, a link to nothing, and one to itself."""
    with pytest.raises(MissingError, match="must hold gone"):
        member_path(folder, "gone", renew="again")
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("gone")
    (folder / "loop").symlink_to("loop")
    for name in ("deeper", "pipe", "dangling", "loop"):
        with pytest.raises(CorruptError) as caught:
            member_path(folder, name, renew="again")
        assert "\n" not in str(caught.value)


def test_what_is_too_large_is_refused_before_it_is_read(folder: Path) -> None:
    with open(folder / "bomb.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptError, match="at most 1000 bytes"):
        read_member(folder, "bomb.json", renew="again", most_bytes=1000)
