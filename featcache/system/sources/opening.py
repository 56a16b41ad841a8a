"""`read_input`: the bytes of an input by its path alone, whatever kind of place that leads to."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from typing import NamedTuple

from featcache.errors import FormatError, InputError, MissingError, ReadError
from featcache.system.objects import ObjectPath
from featcache.system.sources.files import read_file
from featcache.system.sources.interface import Container, FileStat
from featcache.system.sources.remote import one_input, read_object

CONTAINER_EXTENSIONS = (".tar", ".parquet", ".arrow")
_MEMBER = re.compile(r"(.*?\.(tar|parquet|arrow))/(.+)", re.DOTALL | re.IGNORECASE)
_ROW = re.compile(r"(.*?\.(?:csv|tsv|jsonl|ndjson|parquet)):(?:(.+):)?([1-9][0-9]*)", re.DOTALL | re.IGNORECASE)
_MOST_OPEN = 64  # containers whose index is kept

_containers: OrderedDict[tuple[str, bool], Container] = OrderedDict()
_lock = threading.Lock()
_opening: dict[tuple[str, bool], threading.Lock] = {}


def read_input(path: str | bytes) -> tuple[bytes, FileStat]:
    """Return the bytes of an input and the stat that belongs to just these bytes.

    Parameters
    ----------
    path
        A file; a URL; or either of a container with the name of a member behind it: ``shard-000.tar/cat/7.jpg``,
        ``part-0.parquet/17`` (the row), ``data-00000-of-00001.arrow/17``; or a table of texts with a line behind it:
        ``cards.csv:17``. A container's index is read at the first
        member and kept for the others.

    Raises
    ------
    ReadError
        Where this one input cannot be had; the message is a reason without the path.
    StorageError
        Where a storage does not answer, which concerns more than this input.
    """
    if isinstance(path, str) and "://" in path:
        inner = split_member(path)
        return read_object(path) if inner is None else _read_member(inner)
    try:
        return read_file(path)
    except ReadError:
        inner = split_member(os.fsdecode(path))
        if inner is None or not os.path.isfile(inner[0]):
            raise
        return _read_member(inner)


def input_exists(path: str) -> bool:
    """Return whether there is an input at `path`, whether it can be read or not."""
    inner = split_member(path)
    if "://" in path:
        return ObjectPath(path if inner is None else inner[0]).exists()
    return os.path.exists(path) or (inner is not None and os.path.isfile(inner[0]))


def is_remote(path: str | bytes) -> bool:
    """Return whether a read of `path` waits for a storage."""
    return isinstance(path, str) and "://" in path


def is_container(name: str) -> bool:
    """Return whether the name is that of a file of many inputs."""
    return name.lower().endswith(CONTAINER_EXTENSIONS)


class Member(NamedTuple):
    """A container's path, what is called `name` in it, and whether that is a text in a table's row."""

    container: str
    name: str
    is_text: bool


def split_member(path: str) -> Member | None:
    """Return which member of which container `path` names; None where it names none."""
    if (row := _ROW.fullmatch(path)) is not None:
        return Member(row[1], f"{row[2] or ''}:{row[3]}", True)
    match = _MEMBER.fullmatch(path)
    return None if match is None else Member(match[1], match[3], False)


def _read_member(member: Member) -> tuple[bytes, FileStat]:
    container = _container(member)
    try:
        return container.read(member.name)
    except ReadError:
        if container.is_current():
            raise
    key = (member.container, member.is_text)
    with _lock:
        if _containers.get(key) is container:
            del _containers[key]
    return _container(member).read(member.name)


def _container(member: Member) -> Container:
    """Return the container of `member`, opened once for all threads."""
    key = (member.container, member.is_text)  # a Parquet file may hold images, and texts
    with _lock:
        if key in _containers:
            _containers.move_to_end(key)
            return _containers[key]
        opening = _opening.setdefault(key, threading.Lock())
    with opening:
        with _lock:
            if key in _containers:
                return _containers[key]
        opened = _opened(*key)
        with _lock:
            _containers[key] = opened
            _opening.pop(key, None)
            while len(_containers) > _MOST_OPEN:
                _containers.popitem(last=False)
        return opened


def _opened(path: str, is_text: bool) -> Container:
    from featcache.system.sources.tar_container import TarContainer

    def open_() -> Container:
        if path.lower().endswith(".tar"):
            return TarContainer(path)
        from featcache.system.sources.columns import ArrowContainer, ParquetContainer

        return ParquetContainer(path) if path.lower().endswith(".parquet") else ArrowContainer(path)

    try:
        if not is_text:
            return one_input(open_)
        from featcache.system.sources.text_rows import TextRowContainer

        return TextRowContainer(path)
    except (FormatError, InputError, MissingError) as error:
        raise ReadError(f"cannot be read: {error}") from error
