"""The contract of a store: LMDB and Zarr answer as the plain in-memory one does, whatever is done to them."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featcache.errors import ExistsError, FormatError, InputError, LockedError, MissingError
from featcache.store import Column, FeatureStore, create_store, open_store

COLUMNS = (
    Column("features", (6,), "float16"),
    Column("features@1", (6,), "float16"),
    Column("tokens", (3, 2), "float32"),
    Column("score", (), "float32"),
)


def make_keys(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, count]).integers(0, 256, (count, 32), dtype=np.uint8)


def make_values(keys: np.ndarray, columns: tuple[Column, ...] = COLUMNS) -> dict[str, np.ndarray]:
    """Return rows that are a function of their keys."""
    values = {}
    for position, column in enumerate(columns):
        size = int(np.prod(column.shape, dtype=int))
        sources = keys.astype(np.float32)[:, (np.arange(size) + position) % 32] - 128
        values[column.name] = sources.reshape(len(keys), *column.shape).astype(column.dtype)
    return values


@pytest.fixture(params=["memory", "lmdb", "zarr"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    with create_store(tmp_path / "store", kind=request.param, columns=COLUMNS) as opened:
        yield opened


@pytest.fixture(params=["lmdb", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def append(store: FeatureStore, keys: np.ndarray) -> None:
    with store.writer() as writer:
        writer.append(keys, make_values(keys))
        writer.commit()


def assert_holds(store: FeatureStore, keys: np.ndarray) -> None:
    with store.reader() as reader:
        assert np.array_equal(reader.keys(), keys)
        for column, values in make_values(keys).items():
            assert np.array_equal(reader.read(column, 0, len(keys)), values)
            parts = list(reader.blocks(column))
            assert [first for first, _ in parts] == list(itertools.accumulate([0] + [len(p) for _, p in parts]))[:-1]
            assert sum(len(part) for _, part in parts) == len(keys)
            for first, part in parts:
                assert np.array_equal(part, values[first : first + len(part)])


def test_what_is_appended_comes_back_in_every_way(store: FeatureStore) -> None:
    keys = make_keys(300)
    values = make_values(keys)
    append(store, keys)
    assert_holds(store, keys)
    rows = np.random.default_rng(0).integers(0, 300, 1000)
    with store.reader() as reader:
        assert len(reader) == 300
        assert reader.columns == COLUMNS
        for column in COLUMNS:
            gathered = reader.gather(column.name, rows)
            assert gathered.dtype == column.dtype
            assert np.array_equal(gathered, values[column.name][rows])
            out = np.empty_like(gathered)
            assert reader.gather(column.name, rows, out=out) is out
            assert np.array_equal(out, gathered)
            wide = np.empty(gathered.shape, dtype=np.float32)
            assert np.array_equal(reader.gather(column.name, rows, out=wide), gathered)
            assert np.array_equal(reader.read(column.name, 17, 203), values[column.name][17:203])
        assert np.array_equal(reader.find(keys[rows]), rows)
        assert (reader.find(make_keys(50, seed=9)) == -1).all()


def test_an_empty_store_answers(store: FeatureStore) -> None:
    with store.reader() as reader:
        assert len(reader) == 0
        assert reader.keys().shape == (0, 32)
        assert list(reader.blocks("tokens")) == []
        assert reader.read("tokens", 0, 0).shape == (0, 3, 2)
        assert reader.gather("score", np.empty(0, dtype=np.int64)).shape == (0,)
        assert (reader.find(make_keys(3)) == -1).all()
    assert store.verify().ok


def test_nothing_is_visible_before_the_commit(store: FeatureStore) -> None:
    keys = make_keys(40)
    append(store, keys[:10])
    with store.writer() as writer:
        writer.append(keys[10:], make_values(keys[10:]))
        assert len(writer) == 40
        with store.reader() as reader:
            assert len(reader) == 10
    assert_holds(store, keys[:10])


def test_a_reader_is_a_snapshot(store: FeatureStore) -> None:
    keys = make_keys(60)
    append(store, keys[:20])
    with store.reader() as before:
        append(store, keys[20:])
        assert len(before) == 20
        assert (before.find(keys[20:]) == -1).all()
        assert np.array_equal(before.read("tokens", 0, 20), make_values(keys[:20])["tokens"])
    assert_holds(store, keys)


def test_a_key_keeps_its_first_row(store: FeatureStore) -> None:
    keys = make_keys(10)
    append(store, keys)
    again = np.concatenate([keys[3:7], make_keys(2, seed=1), make_keys(2, seed=1)])
    other = {name: values + 1 for name, values in make_values(again).items()}
    with store.writer() as writer:
        assert writer.append(again, other) == 2
        writer.commit()
    with store.reader() as reader:
        assert len(reader) == 12
        assert np.array_equal(reader.read("score", 0, 10), make_values(keys)["score"])


def test_dropped_rows_are_gone_and_may_come_back(store: FeatureStore) -> None:
    keys = make_keys(100)
    append(store, keys)
    with store.writer() as writer:
        assert writer.drop(np.concatenate([keys[10:30], keys[10:12], make_keys(5, seed=3)])) == 20
        assert bytes(keys[10]) not in writer
        assert bytes(keys[40]) in writer
        assert len(writer) == 80
        assert_holds(store, keys)  # not before the commit
        writer.append(keys[20:25], make_values(keys[20:25]))
        assert writer.find(keys[20:22]).tolist() == [80, 81]
        assert writer.find(keys[30:31]).tolist() == [10]
        assert writer.drop(keys[20:21]) == 1
        writer.commit()
        expected = np.concatenate([keys[:10], keys[30:], keys[21:25]])
        assert_holds(store, expected)
        assert np.array_equal(writer.find(expected), np.arange(len(expected)))
    assert_holds(store, expected)


def test_dropping_all_rows_leaves_a_store(store: FeatureStore) -> None:
    keys = make_keys(30)
    append(store, keys)
    with store.writer() as writer:
        writer.drop(keys)
        writer.commit()
    assert_holds(store, keys[:0])
    append(store, keys)
    assert_holds(store, keys)


def test_views_cannot_be_written_to(store: FeatureStore) -> None:
    append(store, make_keys(5))
    with store.reader() as reader:
        for _, block in reader.blocks("features"):
            if block.base is not None and not block.flags.owndata and not block.flags.writeable:
                with pytest.raises(ValueError, match="read-only"):
                    block[0, 0] = 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": np.zeros((2, 7), np.float16)},
        {},
        {"more": np.zeros((2,), np.float32)},
        {"score": np.array([1e39, 0])},
    ],
)
def test_wrong_rows_are_refused(kind: str, tmp_path: Path, wrong: dict[str, np.ndarray]) -> None:
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    keys = make_keys(2)
    columns = {**make_values(keys), **wrong} if wrong else {"features": make_values(keys)["features"]}
    with store.writer() as writer, pytest.raises(InputError):
        writer.append(keys, columns)
    assert_holds(store, keys[:0])


def test_wrong_requests_are_refused(kind: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    append(store, make_keys(10))
    with store.reader() as reader:
        for rows in (np.array([10]), np.array([-1]), np.array([0.5]), np.zeros((2, 2), np.int64)):
            with pytest.raises(InputError):
                reader.gather("features", rows)
        with pytest.raises(InputError, match="column must be one of"):
            reader.gather("nothing", np.array([0]))
        with pytest.raises(InputError):
            reader.read("features", 5, 11)
        with pytest.raises(InputError, match="shape"):
            reader.gather("features", np.array([0]), out=np.empty((2, 6), np.float16))
        with pytest.raises(InputError, match="keys must be"):
            reader.find(np.zeros((2, 31), np.uint8))
    with pytest.raises(InputError, match="distinct"):
        create_store(tmp_path / "other", kind=kind, columns=[COLUMNS[0], COLUMNS[0]])
    for name in ("", "../x", "a/b", "é"):
        with pytest.raises(InputError):
            Column(name, (2,), "float16")
    with pytest.raises(InputError):
        Column("x", (2,), "float64")
    with pytest.raises(InputError, match="one of"):
        create_store(tmp_path / "other", kind="sqlite", columns=COLUMNS)


def test_a_closed_writer_refuses_and_lets_the_next_one_in(store: FeatureStore) -> None:
    with store.writer() as writer:
        with pytest.raises(LockedError):
            store.writer()
        writer.append(make_keys(3), make_values(make_keys(3)))
        writer.commit()
    append(store, make_keys(4))
    assert_holds(store, np.concatenate([make_keys(3), make_keys(4)]))


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


def test_more_than_the_buffer_in_one_commit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.store._writer._PENDING_BYTES", 10_000)
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    keys = make_keys(5000)
    append(store, keys[:100])
    with store.writer() as writer:
        for start in range(100, 5000, 700):
            writer.append(keys[start : start + 700], make_values(keys[start : start + 700]))
        with store.reader() as reader:
            assert len(reader) == 100
        assert len(writer) == 5000
    assert_holds(store, keys[:100])  # never committed
    with store.writer() as writer:
        for start in range(100, 5000, 700):
            writer.append(keys[start : start + 700], make_values(keys[start : start + 700]))
        writer.drop(keys[50:150])
        writer.commit()
    assert_holds(store, np.concatenate([keys[:50], keys[150:]]))
    assert store.verify().ok


def test_keys_that_share_their_first_bytes_are_told_apart(kind: str, tmp_path: Path) -> None:
    keys = make_keys(64)
    keys[:, :31] = keys[0, :31]
    keys[:, 31] = np.arange(64)
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    append(store, keys[::2])
    with store.reader() as reader:
        assert reader.find(keys).tolist() == [row // 2 if row % 2 == 0 else -1 for row in range(64)]


class AgainstMemory(RuleBasedStateMachine):
    """Does the same to both stores on disk and to the one in memory; small blocks, so that rules meet their edges."""

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.kinds = ("memory", "lmdb", "zarr")
        self.stores = {k: create_store(self.folder / k, kind=k, columns=COLUMNS) for k in self.kinds}
        self.writers = {k: store.writer() for k, store in self.stores.items()}
        self.snapshots: list[tuple[np.ndarray, dict[str, object]]] = []
        self.pool = make_keys(400, seed=5)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for writer in self.writers.values():
                writer.close()
            shutil.rmtree(self.folder)

    @rule(start=st.integers(0, 399), count=st.integers(0, 150))
    def append(self, start: int, count: int) -> None:
        keys = self.pool[start : start + count]
        assert len({writer.append(keys, make_values(keys)) for writer in self.writers.values()}) == 1

    @rule(start=st.integers(0, 399), count=st.integers(0, 60))
    def drop(self, start: int, count: int) -> None:
        assert len({writer.drop(self.pool[start : start + count]) for writer in self.writers.values()}) == 1

    @rule()
    def commit(self) -> None:
        for writer in self.writers.values():
            writer.commit()

    @rule()
    def abandon(self) -> None:
        for name, store in self.stores.items():
            self.writers[name].close()
            self.writers[name] = store.writer()

    @rule()
    def reopen(self) -> None:
        for name in ("lmdb", "zarr"):
            self.stores[name].close()
            self.stores[name] = open_store(self.folder / name)

    @rule()
    def look(self) -> None:
        readers = {name: store.reader() for name, store in self.stores.items()}
        self.snapshots = [*self.snapshots[-2:], (readers["memory"].keys(), dict(readers))]

    @rule()
    def verify(self) -> None:
        assert [store.verify().problems for store in self.stores.values()] == [(), (), ()]

    @invariant()
    def all_answer_alike(self) -> None:
        if not hasattr(self, "stores"):
            return
        assert len({len(writer) for writer in self.writers.values()}) == 1
        found = [writer.find(self.pool) for writer in self.writers.values()]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        now = {name: store.reader() for name, store in self.stores.items()}
        for keys, readers in [*self.snapshots, (now["memory"].keys(), dict(now))]:
            for reader in readers.values():
                assert np.array_equal(reader.keys(), keys)  # type: ignore[attr-defined]
                for column, values in make_values(keys).items():
                    assert np.array_equal(reader.read(column, 0, len(keys)), values)  # type: ignore[attr-defined]


AgainstMemory.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # each step is printed; shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
test_any_sequence_answers_as_memory_does = AgainstMemory.TestCase


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


def test_verify_between_commits_disturbs_no_reader(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.store._record._SMALL_ARRAY_BLOCK_ROWS", 128)
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    keys = make_keys(128)
    append(store, keys[:98])
    assert store.verify().ok
    append(store, keys[98:])
    assert_holds(store, keys)


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the sequences' arrays into blocks of 64 rows, so that a few hundred rows make several."""
    if "AgainstMemory" in request.node.nodeid or "any_sequence" in request.node.nodeid:
        monkeypatch.setattr("featcache.store._record._SMALL_ARRAY_BLOCK_ROWS", 128)
        monkeypatch.setattr("featcache.store._record._choose_block_rows", lambda row_bytes: 64)
        monkeypatch.setattr("featcache.store._writer._PENDING_BYTES", 6000)


def resident(name: str) -> int:
    """Return how many kB of mappings of files with `name` in their path are in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
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
