"""Inputs that are objects of their own, in a storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from featcache.errors import AccessError, InputError, MissingError, ReadError
from featcache.system.objects import ObjectPath, ObjectStatus
from featcache.system.sources.interface import MAX_FILE_BYTES, FileStat, fold

T = TypeVar("T")


def read_object(url: str) -> tuple[bytes, FileStat]:
    """Return an object's bytes and the stat that belongs to them.

    Raises `ReadError` for what is not there, denied or larger than 1 GiB: that concerns one input. A storage that does
    not answer concerns all of them: that raises `StorageError`.
    """
    place = ObjectPath(url)
    data, status = one_input(lambda: place.read(most_bytes=MAX_FILE_BYTES))
    return data, object_stat(place, status)


def object_stat(place: ObjectPath, status: ObjectStatus, *member: object) -> FileStat:
    """Return what names the content of an object, or of the `member` in it that these words name.

    The URL counts, since a server may make ETags from the time of change alone, which several files can share.
    """
    if status.etag:
        named = (str(place), status.etag, status.size, *member)
        return (status.size, fold(*named), fold("second", *named), 0)
    return (status.size, status.modified_ns, status.modified_ns, fold(str(place), *member))


def one_input(read: Callable[[], T]) -> T:
    """Return what `read` does; `ReadError` for what concerns one input alone."""
    try:
        return read()
    except MissingError as error:
        raise ReadError("cannot be read: there is no such object") from error
    except AccessError as error:
        raise ReadError("cannot be read: the storage denies it to these credentials") from error
    except InputError as error:
        raise ReadError(f"is larger than {MAX_FILE_BYTES} bytes") from error
