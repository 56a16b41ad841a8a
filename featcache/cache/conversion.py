"""`convert`: copy a cache into the other kind of store; equal content, equal ``content_digest``."""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featcache.cache.cache import FeatureCache, borrow_cache, open_cache
from featcache.cache.manifest import write_manifest
from featcache.errors import VerificationError
from featcache.store import FeatureStore, create_store
from featcache.system.files import new_directory


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


def convert(
    cache: FeatureCache | str | os.PathLike[str], *, out: str | os.PathLike[str], store: str, overwrite: bool = False
) -> ConvertReport:
    """Write a copy of a cache with its rows in the other kind of store; return what was made.

    Recipe, samples and rows are the same, so both caches serve and extend alike.

    Parameters
    ----------
    cache
        An open cache, or its directory.
    out
        The new directory.
    store
        ``lmdb`` or ``zarr``.
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
    with borrow_cache(cache) as source:
        with new_directory(Path(out), overwrite=overwrite) as place:
            write_manifest(place, source.recipe, store=store, request=source.request)
            with create_store(place / "store", kind=store, columns=source.columns) as copied:
                _copy_rows(source, copied)
            shutil.copytree(source.path / "samples", place / "samples")
            with open_cache(place) as copy:
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
        with tqdm(total=len(reader), desc="convert", unit="row", disable=None) as bar:
            for start, block in reader.blocks(first):
                stop = start + len(block)
                columns = {column.name: reader.read(column.name, start, stop) for column in source.columns}
                writer.append(keys[start:stop], columns)
                writer.commit()
                bar.update(len(block))
