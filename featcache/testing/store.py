"""`StoreContract`: the laws of a store of feature rows, as tests that any implementation can run.

For tests alone: it needs pytest and hypothesis (``pip install featcache[test]``); nothing in the package imports it.
"""

from __future__ import annotations

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from featcache.errors import InputError, LockedError
from featcache.store import Column, FeatureStore, Keys, StoreReader, create_store

COLUMNS = (
    Column("features", (6,), "float16"),
    Column("features@1", (6,), "float16"),
    Column("tokens", (3, 2), "float32"),
    Column("score", (), "float32"),
)


def make_keys(count: int, *, seed: int = 0) -> Keys:
    """Return `count` keys (count, 32) uint8 that spread as digests do."""
    return np.random.default_rng([seed, count]).integers(0, 256, (count, 32), dtype=np.uint8)


def make_values(keys: Keys, columns: tuple[Column, ...] = COLUMNS) -> dict[str, npt.NDArray[Any]]:
    """Return rows of `columns` that are a function of their keys."""
    values = {}
    for position, column in enumerate(columns):
        size = int(np.prod(column.shape, dtype=int))
        sources = keys.astype(np.float32)[:, (np.arange(size) + position) % 32] - 128
        values[column.name] = sources.reshape(len(keys), *column.shape).astype(column.dtype)
    return values


def append(store: FeatureStore, keys: Keys) -> None:
    """Append and commit the rows that `make_values` gives `keys`."""
    with store.writer() as writer:
        writer.append(keys, make_values(keys))
        writer.commit()


def assert_holds(store: FeatureStore, keys: Keys) -> None:
    """Assert that a store holds exactly the rows that `make_values` gives `keys`, in this order."""
    with store.reader() as reader:
        assert np.array_equal(reader.keys(), keys)
        for column, values in make_values(keys).items():
            assert np.array_equal(reader.read(column, 0, len(keys)), values)
            blocks = list(reader.blocks(column))
            assert [start for start, _ in blocks] == list(itertools.accumulate([0] + [len(b) for _, b in blocks]))[:-1]
            assert sum(len(block) for _, block in blocks) == len(keys)
            for start, block in blocks:
                assert np.array_equal(block, values[start : start + len(block)])


class StoreContract(ABC):
    """The laws of a store. Subclass it as ``Test…`` in a test file, say how a store is made, and pytest runs them.

    `sequences`: how many random sequences of operations are compared with the store in memory. `writers`: how many a
    store has at a time, ``one`` or ``many``.

    Examples
    --------
    >>> class TestMemory(StoreContract):
    ...     def create(self, place, columns):
    ...         return create_store(place, kind="memory", columns=columns)
    """

    sequences: ClassVar[int] = 15
    writers: ClassVar[Literal["one", "many"]] = "one"

    @abstractmethod
    def create(self, place: Path, columns: tuple[Column, ...]) -> FeatureStore:
        """Return a new, empty store of `columns`, at `place` where it is kept on disk."""

    def reopen(self, store: FeatureStore, place: Path) -> FeatureStore:
        """Return the store at `place` opened again; a store that is kept nowhere is `store` itself."""
        return store

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[FeatureStore]:
        """An empty store of `COLUMNS`."""
        with self.create(tmp_path / "store", COLUMNS) as store:
            yield store

    # --- what goes in comes out ---

    def test_appended_rows_come_back_in_every_way(self, store: FeatureStore) -> None:
        """Whole, in spans, gathered in any order and with repeats, into other dtypes, and by key."""
        keys = make_keys(300)
        values = make_values(keys)
        append(store, keys)
        assert_holds(store, keys)
        rows = np.random.default_rng(0).integers(0, 300, 1000)
        with store.reader() as reader:
            assert len(reader) == 300
            assert reader.columns == store.columns == COLUMNS
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

    def test_empty_store_answers(self, store: FeatureStore) -> None:
        """No rows are an answer, not an error."""
        with store.reader() as reader:
            assert len(reader) == 0
            assert reader.keys().shape == (0, 32)
            assert list(reader.blocks("tokens")) == []
            assert reader.read("tokens", 0, 0).shape == (0, 3, 2)
            assert reader.gather("score", np.empty(0, dtype=np.int64)).shape == (0,)
            assert (reader.find(make_keys(3)) == -1).all()
        assert store.verify().ok

    def test_key_appended_again_keeps_its_first_row(self, store: FeatureStore) -> None:
        """A row is a pure function of its key: the second one is not looked at, within one call either."""
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

    def test_keys_that_share_their_first_bytes_are_told_apart(self, store: FeatureStore) -> None:
        """All 32 bytes count."""
        keys = make_keys(64)
        keys[:, :31] = keys[0, :31]
        keys[:, 31] = np.arange(64)
        append(store, keys[::2])
        with store.reader() as reader:
            assert reader.find(keys).tolist() == [row // 2 if row % 2 == 0 else -1 for row in range(64)]

    def test_callers_buffer_may_be_used_again(self, store: FeatureStore) -> None:
        """A writer keeps copies of what it was given."""
        keys = make_keys(20)
        buffers = {name: values.copy() for name, values in make_values(keys).items()}
        lent = keys.copy()
        with store.writer() as writer:
            writer.append(lent, buffers)
            lent[:] = 0
            for values in buffers.values():
                values[...] = 0
            writer.commit()
        assert_holds(store, keys)

    def test_committed_rows_are_there_when_opened_again(self, tmp_path: Path) -> None:
        """What is kept on disk outlives the object."""
        keys = make_keys(70)
        store = self.create(tmp_path / "store", COLUMNS)
        append(store, keys[:40])
        append(store, keys[40:])
        with self.reopen(store, tmp_path / "store") as again:
            assert_holds(again, keys)

    # --- commits and snapshots ---

    def test_nothing_is_visible_before_the_commit(self, store: FeatureStore) -> None:
        """And what was never committed is gone."""
        keys = make_keys(40)
        append(store, keys[:10])
        with store.writer() as writer:
            writer.append(keys[10:], make_values(keys[10:]))
            assert len(writer) == 40
            with store.reader() as reader:
                assert len(reader) == 10
        assert_holds(store, keys[:10])

    def test_many_appends_make_one_commit(self, store: FeatureStore) -> None:
        """However much is pending, all of it becomes visible at once or not at all."""
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

    def test_reader_is_a_snapshot(self, store: FeatureStore) -> None:
        """A later commit does not change what an open reader answers."""
        keys = make_keys(60)
        append(store, keys[:20])
        with store.reader() as before:
            append(store, keys[20:])
            assert len(before) == 20
            assert (before.find(keys[20:]) == -1).all()
            assert np.array_equal(before.read("tokens", 0, 20), make_values(keys[:20])["tokens"])
        assert_holds(store, keys)

    def test_verify_between_commits_disturbs_no_reader(self, store: FeatureStore) -> None:
        """Rows appended after a check join the ones before it."""
        keys = make_keys(128)
        append(store, keys[:98])
        assert store.verify().ok
        append(store, keys[98:])
        assert_holds(store, keys)

    def test_views_cannot_be_written_to(self, store: FeatureStore) -> None:
        """Neither blocks, full ones and the last, nor keys: what is mapped is what is on disk."""
        keys = make_keys(150)
        append(store, keys)
        with store.reader() as reader:
            views = [block for column in COLUMNS for _, block in reader.blocks(column.name)]
            for view in (*views, reader.keys()):
                assert not view.flags.writeable  # before trying: a write to mapped memory would end the process
                with pytest.raises(ValueError, match="read-only"):
                    view[...] = 1
        assert_holds(store, keys)

    # --- dropping ---

    def test_dropped_rows_are_gone_and_may_come_back(self, store: FeatureStore) -> None:
        """Not before the commit; the rows left keep their order; a key that comes back is a new row."""
        keys = make_keys(100)
        append(store, keys)
        with store.writer() as writer:
            assert writer.drop(np.concatenate([keys[10:30], keys[10:12], make_keys(5, seed=3)])) == 20
            assert bytes(keys[10]) not in writer
            assert bytes(keys[40]) in writer
            assert len(writer) == 80
            assert_holds(store, keys)
            writer.append(keys[20:25], make_values(keys[20:25]))
            assert writer.find(keys[20:22]).tolist() == [80, 81]
            assert writer.find(keys[30:31]).tolist() == [10]
            assert writer.drop(keys[20:21]) == 1
            writer.commit()
            expected = np.concatenate([keys[:10], keys[30:], keys[21:25]])
            assert_holds(store, expected)
            assert np.array_equal(writer.find(expected), np.arange(len(expected)))
        assert_holds(store, expected)

    def test_dropping_all_rows_leaves_a_store(self, store: FeatureStore) -> None:
        """An emptied store is one like any other."""
        keys = make_keys(30)
        append(store, keys)
        with store.writer() as writer:
            writer.drop(keys)
            writer.commit()
        assert_holds(store, keys[:0])
        append(store, keys)
        assert_holds(store, keys)

    # --- refusals ---

    @pytest.mark.parametrize(
        "wrong",
        [
            {"features": np.zeros((2, 7), np.float16)},
            {"features": None},
            {"more": np.zeros((2,), np.float32)},
            {"features": np.full((2, 6), 1e30, np.float32)},
        ],
        ids=["shape", "missing", "unknown", "too large"],
    )
    def test_wrong_rows_are_refused(self, store: FeatureStore, wrong: dict[str, npt.NDArray[Any] | None]) -> None:
        """A column of another shape, missing, unknown or with values that its dtype cannot hold."""
        keys = make_keys(2)
        columns = {name: values for name, values in {**make_values(keys), **wrong}.items() if values is not None}
        with store.writer() as writer:
            with pytest.raises(InputError):
                writer.append(keys, columns)
            writer.commit()
        assert_holds(store, keys[:0])

    def test_wrong_requests_are_refused(self, store: FeatureStore) -> None:
        """Rows, columns, spans, outputs and keys that cannot be."""
        append(store, make_keys(10))
        with store.reader() as reader:
            for rows in (np.array([10]), np.array([-1]), np.array([0.5]), np.zeros((2, 2), np.int64)):
                with pytest.raises(InputError):
                    reader.gather("features", rows)
            with pytest.raises(InputError, match="column must be one of"):
                reader.gather("nothing", np.array([0]))
            for start, stop in ((5, 11), (-1, 2), (3, 2)):
                with pytest.raises(InputError):
                    reader.read("features", start, stop)
            with pytest.raises(InputError, match="shape"):
                reader.gather("features", np.array([0]), out=np.empty((2, 6), np.float16))
            with pytest.raises(InputError, match="keys must be"):
                reader.find(np.zeros((2, 31), np.uint8))
        with store.writer() as writer, pytest.raises(InputError, match="keys must be"):
            writer.append(np.zeros((2, 31), np.uint8), make_values(make_keys(2)))

    def test_closed_writer_takes_no_more_rows(self, store: FeatureStore) -> None:
        """What it committed stays, and another one may begin."""
        with store.writer() as writer:
            writer.append(make_keys(3), make_values(make_keys(3)))
            writer.commit()
        with pytest.raises(LockedError):
            writer.append(make_keys(5), make_values(make_keys(5)))
        append(store, make_keys(4))
        assert_holds(store, np.concatenate([make_keys(3), make_keys(4)]))

    def test_second_writer_is_refused_or_both_commit(self, store: FeatureStore) -> None:
        """One at a time; or any number, and whoever commits later leaves out what the others have committed."""
        keys = make_keys(90)
        append(store, keys[:30])
        with store.writer() as writer:
            if self.writers == "one":
                with pytest.raises(LockedError):
                    store.writer()
                return
            with store.writer() as other, store.writer() as third:
                writer.append(keys[20:60], make_values(keys[20:60]))
                other.append(keys[50:90], make_values(keys[50:90]))
                third.append(keys[55:65], make_values(keys[55:65]))
                assert [len(one) for one in (writer, other, third)] == [60, 70, 40]
                assert writer.drop(keys[5:10]) == other.drop(keys[5:7]) + 3 == 5
                other.commit()
                writer.commit()
                third.commit()
                assert len(third) == 85
                assert third.append(keys[88:], make_values(keys[88:])) == 0
        assert_holds(store, np.concatenate([keys[:5], keys[10:30], keys[50:90], keys[30:50]]))
        assert store.verify().ok

    # --- any sequence ---

    def test_any_sequence_answers_as_the_memory_store_does(self) -> None:
        """Appends, drops, commits, abandoned writers, snapshots and reopening, in any order."""
        contract = self

        class Machine(_AgainstMemory):
            def __init__(self) -> None:
                super().__init__(contract)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.sequences,
                stateful_step_count=20,
                deadline=None,
                phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would take minutes
                suppress_health_check=list(HealthCheck),
            ),
        )


class _AgainstMemory(RuleBasedStateMachine):
    """Does the same to the store under test and to the one in memory."""

    def __init__(self, contract: StoreContract) -> None:
        super().__init__()
        self._contract = contract
        self._folder = tempfile.TemporaryDirectory()

    @initialize()
    def start(self) -> None:
        self._place = Path(self._folder.name) / "store"
        self._store = self._contract.create(self._place, COLUMNS)
        self._model = create_store("", kind="memory", columns=COLUMNS)
        self._writers = self._store.writer(), self._model.writer()
        self._snapshots: list[tuple[StoreReader, StoreReader]] = []
        self._pool = make_keys(400, seed=5)

    def teardown(self) -> None:
        for writer in getattr(self, "_writers", ()):
            writer.close()
        self._folder.cleanup()

    @rule(start=st.integers(0, 399), count=st.integers(0, 150))
    def append(self, start: int, count: int) -> None:
        keys = self._pool[start : start + count]
        mine, models = (writer.append(keys, make_values(keys)) for writer in self._writers)
        assert mine == models

    @rule(start=st.integers(0, 399), count=st.integers(0, 60))
    def drop(self, start: int, count: int) -> None:
        mine, models = (writer.drop(self._pool[start : start + count]) for writer in self._writers)
        assert mine == models

    @rule()
    def commit(self) -> None:
        for writer in self._writers:
            writer.commit()

    @rule()
    def abandon(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers = self._store.writer(), self._model.writer()

    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = self._contract.reopen(self._store, self._place)

    @rule()
    def look(self) -> None:
        self._snapshots = [*self._snapshots[-2:], (self._store.reader(), self._model.reader())]

    @rule()
    def verify(self) -> None:
        assert self._store.verify().problems == ()

    @invariant()
    def both_answer_alike(self) -> None:
        if not hasattr(self, "_store"):
            return
        mine, models = self._writers
        assert len(mine) == len(models)
        assert np.array_equal(mine.find(self._pool), models.find(self._pool))
        for reader, expected in (*self._snapshots, (self._store.reader(), self._model.reader())):
            keys = expected.keys()
            assert np.array_equal(reader.keys(), keys)
            assert np.array_equal(reader.find(self._pool), expected.find(self._pool))
            for column, values in make_values(keys).items():
                assert np.array_equal(reader.read(column, 0, len(keys)), values)
