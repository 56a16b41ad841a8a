"""`convert`: copy a cache into the other kind of store; equal content, equal ``content_digest``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from featcache.cache.cache import CachePlace, FeatureCache, borrow_cache
from featcache.cache.creation import new_cache
from featcache.errors import VerificationError
from featcache.store import FeatureStore
from featcache.system.objects import place_of

_COMMITTED_ROWS = 16_384


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion made; `content_digest` was computed from the new cache and equals the old one's."""

    cache: str
    store: str
    rows: int
    bytes: int
    content_digest: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def convert(cache: FeatureCache | CachePlace, *, out: CachePlace, store: str, overwrite: bool = False) -> ConvertReport:
    """Write a copy of a cache with its rows in the other kind of store; return what was made.

    Recipe, samples and rows are the same, so both caches serve and extend alike.

    Parameters
    ----------
    cache
        An open cache, or its directory or URL.
    out
        The new directory, or URL.
    store
        ``lmdb`` or ``zarr``; on object storage ``zarr``.
    overwrite
        Replace what is at `out`.

    Raises
    ------
    ExistsError
        Where `out` exists and `overwrite` is false.
    VerificationError
        Where the copy's content is not the original's.

    Examples
    --------
    >>> report = convert("cache", out="as-zarr", store="zarr", overwrite=True)
    >>> from featcache.cache import open_cache
    >>> with open_cache("cache") as cache:
    ...     report.content_digest == cache.content_digest()
    True
    """
    place = place_of(out)
    with borrow_cache(cache) as source:
        with new_cache(
            place, source.recipe, columns=source.columns, store=store, request=source.request, overwrite=overwrite
        ) as copy:
            _copy_rows(source, copy.store)
            for name in source.datasets:
                copy.replace_samples(source.samples(name))
            digest = copy.content_digest()
            if digest != source.content_digest():
                raise VerificationError(
                    f"the copy of {str(source.path)!r} must have its content digest, got another: run verify"
                )
            with copy.reader() as reader:
                rows = len(reader)
            size = copy.store.nbytes()
        return ConvertReport(str(out), store, rows, size, digest)


def _copy_rows(source: FeatureCache, copied: FeatureStore) -> None:
    first = source.columns[0].name
    with source.reader() as reader, copied.writer() as writer:
        keys = reader.keys()
        uncommitted = 0
        with tqdm(total=len(reader), desc="convert", unit="row", disable=None) as bar:
            for start, block in reader.blocks(first):
                stop = start + len(block)
                columns = {column.name: reader.read(column.name, start, stop) for column in source.columns}
                writer.append(keys[start:stop], columns)
                uncommitted += len(block)
                if uncommitted >= _COMMITTED_ROWS:
                    writer.commit()
                    uncommitted = 0
                bar.update(len(block))
        writer.commit()
