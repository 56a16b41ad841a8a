"""How a store cuts and buffers its rows. None of it changes what is read back."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.errors import InputError


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Sizes that the format leaves open; the defaults suit rows of a few kilobytes and stores of any size.

    Parameters
    ----------
    block_rows
        Rows in a block of each column, a power of two; None: as many as fill about 4 MiB. Of use to `create_store`: a
        store that exists keeps its own.
    key_block_rows
        Rows in a block of the keys and of the checksums, a power of two. Of use to `create_store`, too.
    buffer_bytes
        What a writer holds back before it puts blocks on disk ahead of the commit, unseen by readers.
    segment_bytes
        What a writer on object storage holds in memory before it puts a segment ahead of the commit.
    map_growth_bytes
        Address space that LMDB's map is given beyond what is stored and what is coming: what another process may commit
        at the moment that a snapshot is taken.

    Raises
    ------
    InputError
        Where a number of rows is no power of two, or a number of bytes is negative.

    Examples
    --------
    >>> StoreSettings(block_rows=64).key_block_rows
    8192
    """

    block_rows: int | None = None
    key_block_rows: int = 8192
    buffer_bytes: int = 4 << 20
    segment_bytes: int = 128 << 20
    map_growth_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name, rows in (("block_rows", self.block_rows), ("key_block_rows", self.key_block_rows)):
            if rows is not None and (rows < 1 or rows & (rows - 1)):
                raise InputError(f"{name} must be a power of two, got {rows!r}")
        for name in ("buffer_bytes", "segment_bytes", "map_growth_bytes"):
            size = getattr(self, name)
            if size < 0:
                raise InputError(f"{name} must be 0 or more, got {size!r}")


DEFAULT_SETTINGS = StoreSettings()
