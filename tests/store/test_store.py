"""LMDB, Zarr and the store in memory keep the contract of stores; and what only stores on disk must do."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import ExistsError, FormatError, InputError, MissingError
from featcache.store import Column, FeatureStore, StoreSettings, create_store, open_store
from featcache.testing.store import COLUMNS, StoreContract, make_keys, make_values

SMALL = StoreSettings(block_rows=64, key_block_rows=128, buffer_bytes=6000)


class TestMemory(StoreContract):
    """The plain one: what the others are compared with is itself a store."""

    def create(self, place: Path, columns: tuple[Column, ...]) -> FeatureStore:
        return create_store(place, kind="memory", columns=columns)


class DiskContract(StoreContract):
    """A kind of store on disk, as users have it."""

    kind: str
    settings = StoreSettings()
    sequences = 3

    def create(self, place: Path, columns: tuple[Column, ...]) -> FeatureStore:
        return create_store(place, kind=self.kind, columns=columns, settings=self.settings)

    def reopen(self, store: FeatureStore, place: Path) -> FeatureStore:
        return open_store(place, settings=self.settings)


class TestLmdb(DiskContract):
    kind = "lmdb"


class TestZarr(DiskContract):
    kind = "zarr"


class TestLmdbInSmallBlocks(DiskContract):
    """Blocks so small that a few hundred rows meet all their edges."""

    kind, settings, sequences = "lmdb", SMALL, 15


class TestZarrInSmallBlocks(DiskContract):
    """Blocks so small that a few hundred rows meet all their edges."""

    kind, settings, sequences = "zarr", SMALL, 15


# --- stores on disk ---


@pytest.fixture(params=["lmdb", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("kind", ["memory", "lmdb", "zarr"])
def test_columns_that_cannot_be_are_refused(kind: str, tmp_path: Path) -> None:
    """Two of one name, none, names that are no file names, other dtypes, kinds that there are none of."""
    with pytest.raises(InputError, match="distinct"):
        create_store(tmp_path / "other", kind=kind, columns=[COLUMNS[0], COLUMNS[0]])
    with pytest.raises(InputError, match="one or more"):
        create_store(tmp_path / "other", kind=kind, columns=[])
    for name in ("", "../x", "a/b", "é"):
        with pytest.raises(InputError):
            Column(name, (2,), "float16")
    with pytest.raises(InputError):
        Column("x", (2,), "float64")
    with pytest.raises(InputError, match="one of"):
        create_store(tmp_path / "other", kind="sqlite", columns=COLUMNS)


@pytest.mark.parametrize("wrong", [{"block_rows": 0}, {"block_rows": 48}, {"key_block_rows": -8}, {"buffer_bytes": -1}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    """Blocks are a power of two rows: the format says so."""
    with pytest.raises(InputError, match="must be"):
        StoreSettings(**wrong)


def test_views_of_whole_pages_cannot_be_made_writable(kind: str, tmp_path: Path) -> None:
    """Full blocks are mapped from the file and the last one is a copy: neither lets itself be unlocked."""
    wide = (Column("wide", (1024,), "float32"),)
    settings = StoreSettings(block_rows=64)
    with create_store(tmp_path / "store", kind=kind, columns=wide, settings=settings) as store:
        keys = make_keys(150)
        with store.writer() as writer:
            writer.append(keys, make_values(keys, wide))
            writer.commit()
        with store.reader() as reader:
            blocks = [block for _, block in reader.blocks("wide")]
            assert [len(block) for block in blocks] == [64, 64, 22]
            for view in (*blocks, reader.keys()):
                assert not view.flags.writeable
                with pytest.raises(ValueError, match="read-only"):
                    view[0, 0] = 1
                with pytest.raises(ValueError, match="WRITEABLE"):
                    view.flags.writeable = True


def test_places_that_are_no_store_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        open_store(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(FormatError):
        open_store(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="rows-NUMBER"):
        open_store(tmp_path / "folder")
    (tmp_path / "folder" / "thing").write_bytes(b"x")
    for place in ("file", "folder"):
        with pytest.raises(ExistsError):
            create_store(tmp_path / place, kind=kind, columns=COLUMNS)


def test_many_blocks_and_growth_of_the_map(kind: str, tmp_path: Path) -> None:
    """Rows of 4 KiB: blocks of 1024 rows; the LMDB map of 64 MiB grows; tails become full blocks under open readers."""
    columns = (Column("wide", (1024,), "float32"), Column("odd", (7,), "float16"))
    store = create_store(tmp_path / "store", kind=kind, columns=columns)
    keys = make_keys(22_000)
    sizes = [1, 1022, 1, 1, 2047, 5000, 10_000, 3928]
    old = []
    with store.writer() as writer:
        for start, size in zip(itertools.accumulate([0, *sizes]), sizes, strict=False):
            part = keys[start : start + size]
            writer.append(part, make_values(part, columns))
            writer.commit()
            reader = store.reader()
            assert np.array_equal(reader.read("wide", 0, start + 1)[-1], make_values(part, columns)["wide"][0])
            old.append((start + size, reader))
    expected = make_values(keys, columns)
    rows = np.random.default_rng(0).integers(0, len(keys), 5000)
    for count, reader in old:
        assert len(reader) == count
        wanted = rows[rows < count]
        for column in columns:
            assert np.array_equal(reader.gather(column.name, wanted), expected[column.name][wanted])
        assert np.array_equal(reader.find(keys), np.where(np.arange(len(keys)) < count, np.arange(len(keys)), -1))
    # When a writer is done, what superseded last blocks took is given back, once no reader holds it any more.
    raw = sum(values.nbytes for values in expected.values())
    for _, reader in old:
        reader.close()
    with store.writer():
        pass
    assert store.nbytes() <= 1.03 * raw
    reader = store.reader()
    with store.writer() as writer:
        assert writer.drop(keys[2000:]) == 20_000
        writer.commit()
    assert np.array_equal(reader.gather("wide", rows), expected["wide"][rows])  # it holds the old rows
    reader.close()
    with store.writer():
        pass
    assert store.nbytes() <= 0.12 * raw
    assert store.verify().ok
    with store.reader() as reader:
        assert np.array_equal(reader.read("wide", 0, 2000), expected["wide"][:2000])


def test_many_keys_are_found_before_any_of_them_was_read(kind: str, tmp_path: Path) -> None:
    """Nine full blocks of keys, none mapped yet: they are mapped and checked by another thread meanwhile."""
    keys = make_keys(9 * 8192 + 5)
    store = create_store(tmp_path / "store", kind=kind, columns=[Column("score", (), "float32")])
    with store.writer() as writer:
        writer.append(keys, {"score": np.zeros(len(keys))})
        writer.commit()
        assert writer.append(keys[-9:], {"score": np.zeros(9)}) == 0
    with open_store(tmp_path / "store") as again, again.reader() as reader:
        assert np.array_equal(reader.find(keys[::7]), np.arange(len(keys))[::7])


def resident(name: str) -> int:
    """Return how many kB of mappings of files with `name` in their path are in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head = line.split(maxsplit=5)
        if "-" in head[0] and not head[0].endswith(":"):
            counts = len(head) == 6 and name in head[5]
        elif counts and head[0] == "Rss:":
            total += int(head[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the memory of a mapping is read from /proc")
def test_blocks_let_go_leave_memory_and_come_back(kind: str, tmp_path: Path) -> None:
    column = Column("features", (1024,), "float32")
    keys, place = make_keys(3000), tmp_path / f"let-go-{kind}"
    values = make_values(keys, (column,))["features"]
    with create_store(place, kind=kind, columns=(column,)) as store:
        with store.writer() as writer:
            writer.append(keys, {"features": values})
            writer.commit()
        with store.reader() as reader:
            assert np.array_equal(reader.read("features", 0, 3000), values)
            before = resident(place.name)
            mapping = store._directory.newest()
            committed = mapping.committed()
            layout = next(array for array in committed.record.arrays if array.shape == (1024,))
            array = mapping.array(layout.name, committed, 3000)
            array.let_go(0, 3000)
            full = 3000 // layout.block_rows * layout.block_bytes // 1024
            assert full > 4000
            assert resident(place.name) <= before - full
            assert np.array_equal(reader.read("features", 0, 3000), values)
