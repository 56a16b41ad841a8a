"""A store among several processes: killed writers, waiting writers, readers that fork, spawn, or travel by pickle."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import LockedError, StorageError
from featcache.store import Column, StoreReader, StoreSettings, create_store, open_store
from featcache.testing.store import COLUMNS, append, assert_holds, make_keys, make_values


@pytest.fixture(params=["lmdb", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# The child prints the number of rows after each commit; what it printed must never be lost. Every row is a function of
# its place in one endless sequence of keys, so that any prefix is known. Now and then it drops and appends again.
WRITE = """
from featcache.store import StoreSettings, open_store
from featcache.testing.store import make_keys, make_values
keys = make_keys(40_000, seed=3)
store = open_store({path!r}, settings=StoreSettings(buffer_bytes=40_000, map_growth_bytes=1 << 16))
with store.writer(wait_seconds=20) as writer:
    step = 0
    while True:
        step += 1
        rows = len(writer)
        part = keys[rows : rows + [1, 37, 700, 256][step % 4]]
        writer.append(part, make_values(part))
        if step % 5 == 0:
            writer.drop(keys[rows - rows // 7 : rows + len(part)])
        writer.commit()
        print(len(writer), step % 5 == 0, flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_writer_loses_nothing_and_leaves_nothing_half(kind: str, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path, settings = tmp_path / "store", StoreSettings(block_rows=256, key_block_rows=512)
    create_store(path, kind=kind, columns=COLUMNS, settings=settings).close()
    keys = make_keys(40_000, seed=3)
    committed = 0
    for _ in range(4):
        script = WRITE.format(path=str(path))
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()  # the clock starts at the first commit
            time.sleep(chance.uniform(0, 0.4))
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().split("\n")
        last = [line for line in lines if line.endswith(("True", "False"))]
        committed = int(last[-1].split()[0]) if last else committed
        with open_store(path) as store:
            report = store.verify()
            assert report.problems == ()
            # One more commit may have become durable before it was printed; it appends, or drops at most a seventh.
            assert report.rows >= committed - committed // 6 - 1
            assert_holds(store, keys[: report.rows])
            with store.writer() as writer:  # the lock of the killed one is gone
                assert len(writer) == report.rows
            committed = report.rows
    assert committed > 0


def test_the_second_writer_waits_or_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = create_store(path, kind=kind, columns=COLUMNS)
    with contextlib.ExitStack() as stack:
        writer = store.writer()
        script = f"""
from featcache.store import open_store
from featcache.errors import LockedError
store = open_store({str(path)!r})
try:
    store.writer(wait_seconds=0.2)
except LockedError as error:
    print(error, flush=True)
with store.writer(wait_seconds=30):
    print("in", flush=True)
"""
        child = stack.enter_context(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True))
        assert child.stdout is not None
        refused = child.stdout.readline()
        assert f"process {os.getpid()} on host" in refused
        time.sleep(0.2)
        assert child.poll() is None
        writer.close()
        assert child.stdout.read() == "in\n"
        assert child.wait() == 0


def test_a_forked_child_has_no_part_in_the_lock(kind: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    ready, answer = multiprocessing.Pipe()
    writer = store.writer()

    def child() -> None:
        try:
            writer.append(make_keys(1), make_values(make_keys(1)))
        except LockedError:
            answer.send("refused")
        answer.recv()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert ready.recv() == "refused"
    writer.close()
    append(store, make_keys(3))  # although the child is alive
    ready.send(None)
    process.join()


def check_reader(reader: StoreReader, count: int, then: object) -> None:
    keys = make_keys(3000)
    assert len(reader) == count
    assert np.array_equal(reader.find(keys[:count]), np.arange(count))
    for column, values in make_values(keys[:count]).items():
        assert np.array_equal(reader.gather(column, np.arange(count)[::-1]), values[::-1])
        assert np.array_equal(reader.read(column, 0, count), values)
    if then is not None:
        with open_store(str(then)) as store, store.reader() as newest:
            assert len(newest) >= count


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("touched", [False, True])
def test_a_reader_survives_fork_and_spawn(kind: str, tmp_path: Path, method: str, touched: bool) -> None:
    path = tmp_path / "store"
    store = create_store(path, kind=kind, columns=COLUMNS)
    append(store, make_keys(3000)[:1000])
    with store.reader() as reader:
        if touched:
            reader.gather("tokens", np.arange(500))
        append(store, make_keys(3000)[1000:])  # the child still sees 1000
        process = multiprocessing.get_context(method).Process(target=check_reader, args=(reader, 1000, path))
        process.start()
        process.join()
        assert process.exitcode == 0
        check_reader(reader, 1000, None)


def test_a_reader_travels_by_pickle_or_says_why_not(kind: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    append(store, make_keys(3000)[:2000])
    with store.reader() as reader:
        packed = pickle.dumps(reader)
        check_reader(pickle.loads(packed), 2000, None)
        with store.writer() as writer:
            writer.drop(make_keys(3000)[:5])
            writer.commit()
        check_reader(pickle.loads(packed), 2000, None)
    with store.writer():
        pass
    with pytest.raises(StorageError, match="make a new reader"):
        pickle.loads(packed)


READ = """
import time
import numpy as np
from featcache.store import open_store
from featcache.testing.store import make_keys, make_values
keys = make_keys(40_000, seed=3)
store = open_store({path!r})
seen, deadline = set(), time.monotonic() + {seconds}
print("ready", flush=True)
while time.monotonic() < deadline:
    with store.reader() as reader:
        count = len(reader)
        assert np.array_equal(reader.keys(), keys[:count])
        for column, values in make_values(keys[:count]).items():
            assert np.array_equal(reader.read(column, 0, count), values)
        seen.add(count)
print(len(seen))
"""


def test_readers_elsewhere_keep_working_while_a_writer_appends_and_drops(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = create_store(path, kind=kind, columns=COLUMNS)
    keys = make_keys(40_000, seed=3)
    script = READ.format(path=str(path), seconds=3)
    with contextlib.ExitStack() as stack, store.writer() as writer:
        command = [sys.executable, "-c", script]
        children = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) for _ in range(2)]
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        step = 0
        while any(child.poll() is None for child in children):
            step += 1
            rows = len(writer)
            part = keys[rows : rows + 41]
            writer.append(part, make_values(part))
            if step % 10 == 0:
                writer.drop(keys[rows // 2 : rows + 41])
            writer.commit()
        for child in children:
            assert child.returncode == 0
            assert child.stdout is not None
            assert int(child.stdout.read()) > 2


def test_threads_share_a_reader_and_a_store(kind: str, tmp_path: Path) -> None:
    store = create_store(tmp_path / "store", kind=kind, columns=COLUMNS)
    keys = make_keys(5000)
    append(store, keys[:1000])
    shared, problems = store.reader(), []

    def read() -> None:
        try:
            for _ in range(20):
                with store.reader() as own:
                    for reader in (own, shared):
                        count = len(reader)
                        assert np.array_equal(reader.find(keys[:count]), np.arange(count))
                        assert np.array_equal(reader.read("tokens", 0, count), make_values(keys[:count])["tokens"])
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for start in range(1000, 5000, 200):
        append(store, keys[start : start + 200])
    for thread in threads:
        thread.join()
    assert not problems


def test_views_outlive_reader_and_store(kind: str, tmp_path: Path) -> None:
    """A contract keeps views inside the ``with`` block; breaking it must not end the process."""
    store = create_store(tmp_path / "store", kind=kind, columns=(Column("wide", (1024,), "float32"),))
    keys = make_keys(3000)
    values = {"wide": np.arange(3000, dtype=np.float32)[:, None] * np.ones(1024, dtype=np.float32)}
    with store.writer() as writer:
        writer.append(keys, values)
        writer.commit()
    with store.reader() as reader:
        views = [block for _, block in reader.blocks("wide")]
    store.close()
    del store, reader, writer
    assert np.array_equal(np.concatenate(views), values["wide"])
