"""A store whose commit record is lost everywhere: what checksums prove is kept, the rest is gone, never all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache.errors import CorruptError
from featcache.store import Column, StoreSettings, create_store, open_store

ROWS = 300
SETTINGS = StoreSettings(block_rows=32, key_block_rows=64)


@pytest.fixture
def filled(tmp_path: Path, kind: str) -> tuple[Path, np.ndarray, np.ndarray]:
    """A store of 300 rows, their keys and values."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, size=(ROWS, 32), dtype=np.uint8)
    values = rng.standard_normal((ROWS, 40)).astype(np.float32)
    columns = [Column("x", (40,), "float32")]
    with (
        create_store(tmp_path / "s", kind=kind, columns=columns, settings=SETTINGS) as store,
        store.writer() as writer,
    ):
        writer.append(keys, {"x": values})
        writer.commit()
    return tmp_path / "s", keys, values


def files_of(place: Path) -> list[Path]:
    """Return the files of the rows."""
    return sorted(
        file for file in place.rglob("*") if file.is_file() and "rows-" in str(file) and "lock" not in str(file)
    )


def scramble(place: Path, *, share: float) -> None:
    """Overwrite the beginning of every file behind its first two pages (of Zarr: its descriptions) by random bytes."""
    rng = np.random.default_rng(1)
    for file in files_of(place):
        data = bytearray(file.read_bytes())
        if file.name == "zarr.json":
            file.write_bytes(rng.bytes(len(data)))
        elif file.suffix == ".lmdb":
            stop = 8192 + int(share * (len(data) - 8192))
            data[8192:stop] = rng.bytes(stop - 8192)
            file.write_bytes(data)
        elif share == 1:
            file.write_bytes(rng.bytes(len(data)))


def proven(place: Path, keys: np.ndarray, values: np.ndarray) -> int:
    """Return how many rows the store holds, each of which must be one that was written."""
    with open_store(place) as store, store.reader() as reader:
        rows = np.asarray(reader.find(keys))
        found = np.flatnonzero(rows >= 0)
        assert len(found) == len(reader)
        with store.reader() as again:
            np.testing.assert_array_equal(again.gather("x", rows[found]), values[found])
        return len(found)


@pytest.mark.parametrize("kind", ["lmdb", "zarr"])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_repair_keeps_what_is_proven(filled: tuple[Path, np.ndarray, np.ndarray], kind: str, share: float) -> None:
    """However much is scrambled, the store can be read and written again, and no row is wrong."""
    place, keys, values = filled
    scramble(place, share=share)
    with open_store(place) as store:
        assert not store.verify(repair=True).ok
        assert store.verify().ok
    kept = proven(place, keys, values)
    assert kept == 0 if share == 1 else kept <= ROWS
    if kind == "zarr" and share < 1:
        assert kept == ROWS  # the descriptions alone were lost
    with open_store(place) as store, store.writer() as writer:
        missing = np.asarray(writer.find(keys)) < 0
        writer.append(keys[missing], {"x": values[missing]})
        writer.commit()
    assert proven(place, keys, values) == ROWS


@pytest.mark.parametrize("kind", ["lmdb", "zarr"])
def test_store_without_any_record_says_how_to_begin_anew(
    filled: tuple[Path, np.ndarray, np.ndarray], kind: str
) -> None:
    """As a store of an older version, which has no layout beside its rows."""
    place, _, _ = filled
    scramble(place, share=1)
    (place / "layout.json").unlink()
    with pytest.raises(CorruptError, match="--overwrite' begins anew"):
        open_store(place).verify(repair=True)


@pytest.mark.parametrize("kind", ["lmdb"])
@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 20000])
def test_cut_file_is_repaired(filled: tuple[Path, np.ndarray, np.ndarray], kind: str, size: int) -> None:
    """Down to an empty one."""
    place, keys, values = filled
    (rows,) = files_of(place)
    rows.write_bytes(rows.read_bytes()[:size])
    with open_store(place) as store:
        store.verify(repair=True)
    proven(place, keys, values)
