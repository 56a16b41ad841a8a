"""`convert`: copy a cache into the other kind of store; equal content, equal ``content_digest``."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featcache.cache import FeatureCache, open_cache
from featcache.cache.manifest import write_manifest
from featcache.errors import VerificationError
from featcache.store import create_store
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


def convert(cache: FeatureCache | str | Path, *, out: str | Path, store: str, overwrite: bool = False) -> ConvertReport:
    """Write a copy of `cache` at `out` with its rows in a `store` of kind ``lmdb`` or ``zarr``; return what was made.

    Recipe, samples and rows are the same, so both caches serve and extend alike. Raises `ExistsError` where `out`
    exists and `overwrite` is false, `VerificationError` where the copy's content is not the original's.
    """
    source = cache if isinstance(cache, FeatureCache) else open_cache(cache)
    try:
        with new_directory(Path(out), overwrite=overwrite) as place:
            write_manifest(place, source.recipe, store=store, request=source.request)
            with create_store(place / "store", kind=store, columns=source.columns) as target:
                _copy_rows(source, target)
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
    finally:
        if source is not cache:
            source.close()


def _copy_rows(source: FeatureCache, target: Any) -> None:
    first = source.columns[0].name
    with source.reader() as reader, target.writer() as writer:
        keys = reader.keys()
        with tqdm(total=len(reader), desc="convert", unit="row", disable=None) as bar:
            for start, block in reader.blocks(first):
                stop = start + len(block)
                columns = {column.name: reader.read(column.name, start, stop) for column in source.columns}
                writer.append(keys[start:stop], columns)
                writer.commit()
                bar.update(len(block))
