"""Files and folders that are made whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

from featcache.errors import StorageError
from featcache.system.files import cache_home, new_directory, new_file, user_home, write_atomically


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user number without a name, and nothing that says where its files are."""
    for name in ("HOME", "FEATCACHE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_name_has_the_root_for_a_home() -> None:
    """As containers set HOME then; nothing is made in the current directory."""
    assert user_home() == Path("/")
    assert cache_home() == Path("/.cache/featcache")


@pytest.mark.usefixtures("no_home")
def test_xdg_and_featcache_home_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_home() == Path("/x/featcache")
    monkeypatch.setenv("FEATCACHE_HOME", "/y")
    assert cache_home() == Path("/y")


def test_files_and_folders_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"x")
        with new_file(tmp_path / "b") as file:
            file.write(b"x")
        with new_directory(tmp_path / "c") as folder:
            (folder / "d").write_bytes(b"x")
    finally:
        os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "c", "c/d")}
    assert modes == {"a": 0o640, "b": 0o640, "c": 0o750, "c/d": 0o640}


def test_a_disk_that_fills_names_the_output_and_the_temporary_folder(tmp_path: Path) -> None:
    """The system does not say which of the two was full; nothing is left."""
    said = "out' must be writable, got: No space left on device; free space there and"
    with pytest.raises(StorageError, match=said), new_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_another_file_that_is_refused_is_named(tmp_path: Path) -> None:
    """Not the output, which has nothing to do with it."""
    said = r"gone\.jpg' must be usable, got: No such file or directory"
    with pytest.raises(StorageError, match=said), new_directory(tmp_path / "out"):
        (tmp_path / "gone.jpg").read_bytes()
