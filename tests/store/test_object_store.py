"""The store on object storage keeps the contract of stores, has many writers, and loses nothing whatever fails."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from object_storage import SLOW_DOWN, Answer, StorageProxy, new_bucket, other_server

from featcache.errors import CorruptError, ExistsError, FormatError, InputError, MissingError, StorageError
from featcache.store import Column, FeatureStore, StoreReader, StoreSettings, _object_log, create_store, open_store
from featcache.store._object_directory import ObjectDirectory
from featcache.store._object_log import Change, CommitLog, Segment
from featcache.store._object_store import ObjectStore
from featcache.store._object_verify import clear_objects
from featcache.system import objects
from featcache.system.objects import ObjectPath
from featcache.testing.store import COLUMNS, StoreContract, append, assert_holds, make_keys, make_values

pytestmark = pytest.mark.objects
SMALL = StoreSettings(block_rows=64, key_block_rows=128, segment_bytes=6000)
LARGER = StoreSettings(block_rows=1024, key_block_rows=2048, segment_bytes=60_000)
SCORE = (Column("score", (), "float32"),)
NOT_IMPLEMENTED = Answer(501, b"<Error><Code>NotImplemented</Code></Error>")


class TestObjectStore(StoreContract):
    """In S3, as moto's server has it; several segments in a commit."""

    writers, sequences = "many", 1

    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: ObjectPath) -> None:
        self.bucket = bucket

    def create(self, place: Path, columns: tuple[Column, ...]) -> FeatureStore:
        return create_store(self.bucket / place.parent.name, kind="zarr", columns=columns, settings=LARGER)

    def reopen(self, store: FeatureStore, place: Path) -> FeatureStore:
        return open_store(self.bucket / place.parent.name, settings=LARGER)


class TestObjectStoreOfAnotherServer(TestObjectStore):
    """In S3 as another program has it, which knows nothing of moto; where it is installed."""

    @pytest.fixture
    def bucket(
        self, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[ObjectPath]:
        with other_server("localbucket", tmp_path_factory.mktemp("localbucket")) as address:
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            yield new_bucket(address)


def test_server_without_conditions_is_refused(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not know them, where it is installed."""
    with other_server("nanio", tmp_path) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        (tmp_path / "tests-without").mkdir()
        with pytest.raises(StorageError, match="conditional writes"):
            create_store("s3://tests-without/store", kind="zarr", columns=SCORE)
    objects._opened.cache_clear()


@pytest.fixture
def store(bucket: ObjectPath) -> ObjectStore:
    made = create_store(bucket / "store", kind="zarr", columns=COLUMNS, settings=SMALL)
    assert isinstance(made, ObjectStore)
    return made


def digest_of(reader: StoreReader) -> str:
    """Return a digest of all rows, whatever their order."""
    keys = np.ascontiguousarray(reader.keys())
    order = np.argsort(keys.view("S32").ravel())
    state = hashlib.sha256(keys[order].tobytes())
    for column in reader.columns:
        state.update(np.ascontiguousarray(reader.gather(column.name, order)).tobytes())
    return state.hexdigest()


def append_scores(store: FeatureStore, keys: npt.NDArray[np.uint8]) -> None:
    with store.writer() as writer:
        writer.append(keys, {"score": keys[:, 0].astype(np.float32)})
        writer.commit()


# --- the log ---


def test_opening_reads_no_keys_and_as_little_after_many_commits_as_after_two(
    s3_proxy: StorageProxy, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing, an entry and its checkpoint; and a commit is one request for each chunk and two small ones."""
    monkeypatch.setattr(_object_log, "CHECKPOINT_EVERY", 8)
    store = create_store(bucket / "store", kind="zarr", columns=SCORE)
    append_scores(store, make_keys(2))
    log = CommitLog(bucket / "store/log")
    snapshot = log.newest()
    for _ in range(16):
        snapshot = log.publish(snapshot, Change({}, ()))
    s3_proxy.reset()
    with open_store(bucket / "store") as again, again.reader() as reader:
        assert len(reader) == 2
    assert s3_proxy.counts == {"LIST": 1, "GET": 3}
    s3_proxy.reset()
    append_scores(store, make_keys(3, seed=1))
    assert s3_proxy.counts["PUT"] == 5  # keys, checksums, scores, zarr.json, log entry
    assert log.newest().number == 16 + 2


def test_segments_replaced_and_added_again_and_again_keep_their_order(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry says what changed since the checkpoint, however often a segment was replaced; the next one all of it."""
    monkeypatch.setattr(_object_log, "CHECKPOINT_EVERY", 8)
    log = CommitLog(bucket / "log")
    log.begin()
    rng = np.random.default_rng(0)
    expected: list[Segment] = []
    snapshot = log.newest()
    for number in range(22):
        new, added = Segment(f"new-{number}", 2, 3), Segment(f"added-{number}", 1, 1)
        old = expected[int(rng.integers(len(expected)))] if len(expected) > 3 else None
        replaced = {} if old is None else {old.name: None if number % 3 == 0 else new}
        expected = [s for old in expected if (s := replaced.get(old.name, old)) is not None] + [added]
        snapshot = log.publish(snapshot, Change(replaced, (added,)))
        assert list(snapshot.segments) == expected
        assert CommitLog(bucket / "log").newest() == snapshot


def test_damaged_log_is_refused_by_name(store: ObjectStore, bucket: ObjectPath) -> None:
    """Every entry is under a checksum; one that is missing is told from one that never was."""
    append(store, make_keys(3))
    entry = next(iter((bucket / "store/log").walk()))[0]
    text = entry.read_bytes()
    entry.write_bytes(text.replace(b'"commit": 1', b'"commit": 2'))
    with pytest.raises(CorruptError, match="checksum"):
        open_store(bucket / "store").reader()
    entry.write_bytes(text)
    (bucket / "store/log/99999999999999999999.json").unlink()
    with pytest.raises(CorruptError, match="missing"):
        CommitLog(bucket / "store/log/").at(0)
    for path, _ in list((bucket / "store/log").walk()):
        path.unlink()
    with pytest.raises(CorruptError, match="empty"):
        open_store(bucket / "store").reader()


# --- many writers ---


def write_share(place: str, start: int, stop: int, together: Barrier) -> None:
    """Append rows `start` to `stop` of 400 in commits of 20, as another process does."""
    keys = make_keys(400)
    with open_store(place) as store, store.writer() as writer:
        together.wait(300)
        for first in range(start, stop, 20):
            writer.append(keys[first : first + 20], make_values(keys[first : first + 20]))
            writer.commit()


def test_processes_write_at_once_and_no_row_comes_twice(store: ObjectStore) -> None:
    """Shares that overlap: every key once, and the rows those of one writer alone."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    shares = [(0, 200), (100, 300), (200, 400)]
    writers = [context.Process(target=write_share, args=(str(store.path), *share, together)) for share in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(400)
        assert writer.exitcode == 0
    alone = create_store("", kind="memory", columns=COLUMNS)
    append(alone, make_keys(400))
    with store.reader() as reader, alone.reader() as expected:
        assert len(reader) == 400
        assert digest_of(reader) == digest_of(expected)
    assert store.verify().ok


def test_readers_see_whole_commits_while_others_write(store: ObjectStore) -> None:
    """A listing in the middle of commits names one of them; what it holds is read whole."""
    keys, seen = make_keys(300), set()
    done = threading.Event()

    def write() -> None:
        with store.writer() as writer:
            for first in range(0, 300, 30):
                writer.append(keys[first : first + 30], make_values(keys[first : first + 30]))
                writer.commit()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        with store.reader() as reader:
            seen.add(len(reader))
            assert np.array_equal(
                reader.gather("score", np.arange(len(reader))), make_values(keys)["score"][: len(reader)]
            )
    thread.join()
    assert all(count % 30 == 0 for count in seen)
    assert_holds(store, keys)


# --- what fails ---


def test_refused_and_lost_answers_lose_and_double_nothing(s3_proxy: StorageProxy, bucket: ObjectPath) -> None:
    """Every fifth request is answered with 503 instead, every seventh is done and its answer lost."""
    s3_proxy.fate = lambda method, path, number: SLOW_DOWN if number % 5 == 4 else "lose" if number % 7 == 6 else "pass"
    keys = make_keys(200)
    store = create_store(bucket / "store", kind="zarr", columns=SCORE, settings=SMALL)
    with store.writer() as writer, store.writer() as other:
        for first in range(0, 200, 50):
            for one in (writer, other):
                one.append(keys[first : first + 50], {"score": keys[first : first + 50, 0]})
                one.commit()
    s3_proxy.undisturbed()
    with open_store(bucket / "store") as again, again.reader() as reader:
        assert np.array_equal(reader.keys(), keys)
        assert again.verify().ok


@pytest.mark.parametrize("harm", ["ignored", "not implemented"])
def test_storage_that_honours_no_conditions_is_refused_and_harms_nothing(
    harm: str, s3_proxy: StorageProxy, bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would let two writers have the same commit: whoever makes a store, or extends one that was copied there."""
    monkeypatch.setitem(objects.RETRIES, "max_retries", 1)
    objects._opened.cache_clear()
    place = bucket / "store"
    store = create_store(place, kind="zarr", columns=SCORE, settings=SMALL)
    keys = make_keys(80)
    append_scores(store, keys[:40])
    before = {str(path): path.read_bytes() for path, _ in place.walk()}
    if harm == "ignored":
        s3_proxy.dropped_headers = {"if-none-match"}
    else:
        s3_proxy.fate = lambda method, *_: NOT_IMPLEMENTED if method == "PUT" else "pass"
    with pytest.raises(StorageError, match="conditional writes"):
        create_store(bucket / "other", kind="zarr", columns=SCORE)
    with open_store(place) as again:
        with pytest.raises(StorageError, match="conditional writes" if harm == "ignored" else "NotImplemented"):
            append_scores(again, keys)
        with pytest.raises(StorageError), again.writer() as writer:
            writer.drop(keys[:1])
            writer.commit()
    s3_proxy.undisturbed()
    after = {str(path): path.read_bytes() for path, _ in place.walk()}
    assert {name: after[name] for name in before} == before
    with open_store(place).reader() as reader:
        assert np.array_equal(reader.keys(), keys[:40])
    append_scores(store, keys)
    assert len(store.reader()) == 80
    objects._opened.cache_clear()


def test_killed_writer_leaves_nothing_that_is_read_and_repair_clears_it(store: ObjectStore) -> None:
    """Between the segment and the log entry: the rows are not there, and a day later their objects neither."""
    keys = make_keys(60)
    append(store, keys[:20])
    code = (
        "import os, sys\nfrom featcache.store import open_store\nfrom featcache.store._object_log import CommitLog\n"
        "from featcache.testing.store import make_keys, make_values\n"
        "CommitLog.publish = lambda *_: os.kill(os.getpid(), 9)\n"
        "keys = make_keys(60)\nwriter = open_store(sys.argv[1]).writer()\n"
        "writer.append(keys[10:], make_values(keys[10:]))\nwriter.commit()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], check=False)
    assert done.returncode == -9
    assert_holds(store, keys[:20])
    left = [path for path, _ in (store.path / "segments").walk()]
    assert store.verify(repair=True).ok
    assert [path for path, _ in (store.path / "segments").walk()] == left  # it may be a writer that is about to commit
    append(store, keys)
    directory = ObjectDirectory(store.path, SMALL)
    assert clear_objects(directory, kept_seconds=0) == 7
    assert_holds(store, keys)


def test_rows_that_were_dropped_stay_for_their_readers_until_they_are_cleared(store: ObjectStore) -> None:
    """A snapshot reads what it was made for; cleared at last, it says so."""
    keys = make_keys(100)
    append(store, keys)
    before = store.reader()
    with store.writer() as writer:
        writer.drop(keys[:40])
        writer.commit()
    assert store.verify(repair=True).ok
    assert np.array_equal(before.gather("score", np.arange(100)), make_values(keys)["score"])
    before.close()
    clear_objects(ObjectDirectory(store.path, SMALL), kept_seconds=0)
    assert_holds(store, keys[40:])


@pytest.mark.parametrize("name", ["keys/c.0.0", "row_crc32c/c.0.0", "columns/tokens/c.1.0.0", "zarr.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_found_and_repair_drops_exactly_the_rows(store: ObjectStore, name: str, harm: str) -> None:
    """Of a flipped byte one row, of a lost chunk its rows, of a description none."""
    keys = make_keys(100)
    append(store, keys)
    path = next(path for path, _ in store.path.walk() if str(path).endswith(f"/{name}"))
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if harm == "cut" else data[:9] + bytes([data[9] ^ 1]) + data[10:])
    report = store.verify()
    assert len(report.problems) == 1
    assert name in report.problems[0] or name.split("/c.")[0] in report.problems[0]
    of_a_flip = {"zarr.json": 0, "row_crc32c/c.0.0": 0}.get(name, 1)
    of_a_chunk = {"zarr.json": 0, "row_crc32c/c.0.0": 0, "columns/tokens/c.1.0.0": 50}.get(name, 100)
    expected = of_a_flip if harm == "flip" else of_a_chunk
    assert report.rows == 100 - expected
    repaired = store.verify(repair=True)
    assert repaired.rows == report.rows
    assert store.verify().ok
    with store.reader() as reader:
        assert len(reader) == 100 - expected
        assert np.array_equal(reader.read("tokens", 0, len(reader)), make_values(np.array(reader.keys()))["tokens"])


def test_flipped_byte_is_met_by_few_rows_and_by_many(bucket: ObjectPath) -> None:
    """Few rows are checked by their own checksums, many by their chunk's."""
    store = create_store(bucket / "store", kind="zarr", columns=SCORE)
    keys = make_keys(2000)
    append_scores(store, keys)
    path = next(path for path, _ in store.path.walk() if "columns/score/c" in str(path))
    data = bytearray(path.read_bytes())
    data[4 * 700] ^= 1
    path.write_bytes(bytes(data))
    with store.reader() as reader:
        assert reader.gather("score", np.array([3, 1999])).tolist() == keys[[3, 1999], 0].tolist()
        with pytest.raises(CorruptError, match="row 700"):
            reader.gather("score", np.array([3, 700]))
        with pytest.raises(CorruptError, match="checksum"):
            reader.read("score", 0, 2000)
        with pytest.raises(CorruptError, match="checksum"):
            list(reader.blocks("score"))


# --- who else reads ---


def gather_in(reader: StoreReader) -> list[float]:
    """Return some scores, in another process."""
    return [float(value) for value in reader.gather("score", np.array([5, 1, 5]))]


def test_reader_is_pickled_to_another_process_and_stays_a_snapshot(store: ObjectStore) -> None:
    """It is a URL and the number of a commit."""
    keys = make_keys(40)
    append(store, keys[:20])
    reader = store.reader()
    append(store, keys[20:])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(gather_in, [reader]) == gather_in(reader)
    again = pickle.loads(pickle.dumps(reader))
    assert len(again) == 20
    assert len(pickle.dumps(reader)) < 300


def test_any_zarr_library_reads_a_segment(store: ObjectStore) -> None:
    """zarr-python over its own ObjectStore, by the consolidated metadata."""
    import obstore
    import zarr
    from zarr.storage import ObjectStore as ZarrObjectStore

    keys = make_keys(100)
    append(store, keys)
    (segment,) = ObjectDirectory(store.path, SMALL).log.newest().segments
    place = obstore.store.from_url(str(store.path / "segments" / segment.name))
    group = zarr.open_group(ZarrObjectStore(place, read_only=True), mode="r")
    assert np.array_equal(group["keys"][:], keys)
    for name, values in make_values(keys).items():
        assert np.array_equal(group[f"columns/{name}"][:], values)


# --- what is asked for wrongly ---


def test_bad_input_is_refused_in_one_line(bucket: ObjectPath) -> None:
    """LMDB, a place that is taken, nothing there, another thing there, a bucket that is not there."""
    with pytest.raises(InputError, match="must be 'zarr', got 'lmdb'"):
        create_store(bucket / "x", kind="lmdb", columns=SCORE)
    create_store(bucket / "x", kind="zarr", columns=SCORE)
    with pytest.raises(ExistsError, match="must be empty"):
        create_store(bucket / "x", kind="zarr", columns=SCORE)
    with pytest.raises(FormatError, match=r"layout\.json"):
        open_store(bucket / "nothing")
    (bucket / "x/layout.json").unlink()
    with pytest.raises(CorruptError, match=r"layout\.json"):
        open_store(bucket / "x")
    with pytest.raises(MissingError, match="bucket"):
        create_store("s3://tests-no-such-bucket/x", kind="zarr", columns=SCORE)
