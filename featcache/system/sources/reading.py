"""`input_reader`: many inputs, each read once and about in order; ahead of that, where they lie in a storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from featcache.system.read_ahead import ReadAhead
from featcache.system.sources.interface import FileStat
from featcache.system.sources.opening import is_remote, read_input


@contextmanager
def input_reader(paths: Sequence[str | bytes]) -> Iterator[Callable[[int], tuple[bytes, FileStat]]]:
    """Give a function from an index into `paths`, each called for once and about in order, to what is read there.

    Where the inputs lie in a storage they are read ahead, by many threads. It raises as `read_input`.
    """
    if not len(paths) or not is_remote(paths[0]):
        yield lambda index: read_input(paths[index])
        return
    with ReadAhead(lambda index: read_input(paths[index]), len(paths), size=lambda read: len(read[0])) as ahead:
        yield ahead.take
