"""Whatever happens to a store's files is detected and named, and a repair drops exactly the damaged rows."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from featcache.errors import CorruptError, FeatcacheError, FormatError, StorageError
from featcache.store import FeatureStore, StoreSettings, create_store, open_store
from featcache.testing.store import COLUMNS, append, assert_holds, make_keys, make_values

FLIPS = 260


@pytest.fixture(params=["lmdb", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Path:
    """Make a store of 1000 rows in several blocks and commits."""
    path, settings = tmp_path / "store", StoreSettings(block_rows=256, key_block_rows=512)
    with create_store(path, kind=kind, columns=COLUMNS, settings=settings) as store:
        keys = make_keys(1000)
        for start in (0, 300, 301, 800):
            append(store, keys[start : start + 500][: {0: 300, 300: 1, 301: 499, 800: 200}[start]])
        assert_holds(store, keys)
        assert store.verify().ok
    return path


def files_of(path: Path) -> list[Path]:
    """Return the files that make up a store; the lock files hold nothing of it."""
    return sorted(f for f in path.rglob("*") if f.is_file() and not f.name.endswith("lock"))


def newest(path: Path) -> Path:
    """Return the generation that is the store."""
    return max(path.glob("rows-*[br]"))


def flip(path: Path, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def read_or_refuse(store: FeatureStore) -> int:
    """Return how many rows read right; a wrong one fails the test, a refusal is fine."""
    try:
        with store.reader() as reader:
            keys = make_keys(1000)
            assert len(reader) == 1000
            assert np.array_equal(reader.find(keys), np.arange(1000))
            for column, values in make_values(keys).items():
                assert np.array_equal(reader.gather(column, np.arange(1000)), values)
            return len(reader)
    except (CorruptError, FormatError):
        return 0


def problems_of(path: Path) -> tuple[str, ...]:
    try:
        with open_store(path) as store:
            return store.verify().problems
    except (CorruptError, FormatError) as error:
        return (str(error),)


def assert_rows_are_right(store: FeatureStore) -> np.ndarray:
    """Check every row that is left, and return which of the 1000 they are."""
    with store.reader() as reader:
        keys = make_keys(1000)
        rows = reader.find(keys)
        assert (rows >= 0).sum() == len(reader)
        for column, values in make_values(keys).items():
            assert np.array_equal(reader.gather(column, rows[rows >= 0]), values[rows >= 0])
        return np.flatnonzero(rows >= 0)


def test_every_flipped_bit_is_found_or_harmless(place: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    files = files_of(place)
    sizes = np.array([file.stat().st_size for file in files])
    found = 0
    for trial in range(FLIPS):
        # Half of them anywhere, half in a file chosen evenly: small files hold what matters most.
        target = int(random.choice(len(files), p=sizes / sizes.sum() if trial % 2 else None))
        bit = int(random.integers(sizes[target] * 8))
        flip(files[target], bit)
        problems = problems_of(place)
        if problems:
            found += 1
            assert any("rows-00000" in problem or "layout.json" in problem for problem in problems), problems
        try:
            with open_store(place) as store:
                assert read_or_refuse(store) == 1000 or problems, f"bit {bit} of {files[target]}"
        except (CorruptError, FormatError):
            assert problems
        if trial % 11 == 0 and problems:
            copy = tmp_path / "copy"
            shutil.copytree(place, copy)
            with open_store(copy) as store:
                report = store.verify(repair=True)
                assert not report.ok
                left = assert_rows_are_right(store)
                assert len(left) == report.rows >= 999
                assert len(report.damaged) == 1000 - report.rows
                assert store.verify().ok
                append(store, make_keys(1000))
                assert len(assert_rows_are_right(store)) == 1000
            shutil.rmtree(copy)
        flip(files[target], bit)
    assert found >= 100
    with open_store(place) as store:
        assert store.verify().ok


def test_a_reader_refuses_a_damaged_block_and_reads_the_others(place: Path, kind: str) -> None:
    file, offset = locate_row(place, kind, "columns/tokens", 600)
    flip(file, 8 * offset + 3)
    with open_store(place) as store, store.reader() as reader:
        with pytest.raises(CorruptError, match=r"block 2 of 'columns/tokens' \(rows 512 to 767\)"):
            reader.gather("tokens", np.array([600]))
        # A few rows are checked alone, so an intact one is still read from the damaged block; many are not.
        assert np.array_equal(reader.gather("tokens", np.array([700])), make_values(make_keys(1000))["tokens"][[700]])
        with pytest.raises(CorruptError, match="block 2"):
            reader.gather("tokens", np.arange(650, 750))
        with pytest.raises(CorruptError):
            list(reader.blocks("tokens"))
        assert np.array_equal(reader.read("tokens", 0, 512), make_values(make_keys(1000))["tokens"][:512])
        assert np.array_equal(reader.read("features", 0, 1000), make_values(make_keys(1000))["features"])


def test_a_repair_drops_exactly_the_damaged_rows(place: Path, kind: str) -> None:
    for array, row in (("columns/features", 5), ("columns/score", 300), ("keys", 999)):
        file, offset = locate_row(place, kind, array, row)
        flip(file, 8 * offset)
    file, offset = locate_row(place, kind, "row_crc32c", 450)  # only its checksum: the row itself is intact
    flip(file, 8 * offset)
    with open_store(place) as store:
        report = store.verify()
        assert report.rows == 997
        assert len(report.problems) == 4
        assert len(report.damaged) == 3
        assert store.verify(repair=True).problems == report.problems
        assert np.array_equal(assert_rows_are_right(store), np.delete(np.arange(1000), [5, 300, 999]))
        assert store.verify().ok


def locate_row(path: Path, kind: str, array: str, row: int) -> tuple[Path, int]:
    """Return the file and the offset of a row, by the documented format alone."""
    shapes = {"keys": 32, "row_crc32c": 16, "columns/features": 12, "columns/score": 4, "columns/tokens": 24}
    rows = 512 if array in ("keys", "row_crc32c") else 256
    block, offset = row // rows, row % rows * shapes[array]
    if kind == "zarr":
        dots = {"columns/score": "", "columns/tokens": ".0.0"}.get(array, ".0")
        return newest(path) / array / f"c.{block}{dots}", offset
    file = newest(path)
    with lmdb.open(str(file), subdir=False, readonly=True, lock=False) as env, env.begin() as transaction:
        value = transaction.get(f"{array}/{block:08d}".encode())
    assert value is not None
    start = file.read_bytes().rindex(value)
    return file, start + 4080 + offset


def test_a_missing_or_torn_block_is_named_and_its_rows_dropped(place: Path, kind: str) -> None:
    if kind == "zarr":
        (newest(place) / "columns/features/c.1.0").unlink()
        torn = newest(place) / "columns/features@1/c.3.0"
        torn.write_bytes(torn.read_bytes()[:100])
    else:
        for array, row, size in (("columns/features", 256, 256 * 12), ("columns/tokens", 800, 200 * 24)):
            file, offset = locate_row(place, kind, array, row)
            with open(file, "r+b") as handle:
                handle.seek(offset)
                handle.write(bytes(size))
    problems = problems_of(place)
    assert any("block 1 of 'columns/features'" in problem for problem in problems), problems
    with open_store(place) as store:
        store.verify(repair=True)
        left = set(assert_rows_are_right(store).tolist())
        assert left >= set(range(256)) | set(range(512, 768))
        assert not left & set(range(256, 512))
        assert store.verify().ok


def test_a_commit_by_other_hands_is_named(place: Path, kind: str) -> None:
    """Somebody's program deleted a block from the LMDB file: its bytes are still there and are found again."""
    if kind != "lmdb":
        pytest.skip("a Zarr chunk is a file of its own")
    with lmdb.open(str(newest(place)), subdir=False) as env, env.begin(write=True) as transaction:
        transaction.delete(b"columns/features/00000001")
    assert any("leads to another commit" in problem for problem in problems_of(place))
    with open_store(place) as store:
        store.verify(repair=True)
        assert store.verify().ok
        assert len(assert_rows_are_right(store)) >= 744


def test_a_shortened_file_is_refused(place: Path, kind: str) -> None:
    file = max(files_of(place), key=lambda f: f.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    assert problems_of(place)
    with open_store(place) as store:
        assert read_or_refuse(store) == 0
        store.verify(repair=True)
        assert_rows_are_right(store)
        assert store.verify().ok


def test_a_newer_format_is_refused_by_name(place: Path, kind: str) -> None:
    if kind == "zarr":
        file = newest(place) / "zarr.json"
        file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    else:
        with (
            lmdb.open(str(newest(place)), subdir=False) as env,
            env.begin(write=True) as transaction,
        ):
            for key in (b"commit", b"commit-copy"):
                transaction.put(key, transaction.get(key).replace(b'"version":1', b'"version":2'))
    with pytest.raises(FormatError, match="version 1, got 2"):
        open_store(place)


LIMITED = """
import resource, signal, sys, numpy as np
from featcache.testing.store import append, make_keys, make_values
from featcache.errors import StorageError
from featcache.store import open_store
store = open_store({path!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    for seed in range(1, 200):
        append(store, make_keys(500, seed=seed))
except StorageError as error:
    print("refused:", error)
"""


def test_a_disk_that_refuses_leaves_what_was_committed(place: Path, kind: str) -> None:
    limit = 200_000 if kind == "lmdb" else 6000
    script = LIMITED.format(path=str(place), limit=limit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout
    assert "Nothing committed is lost" in done.stdout
    with open_store(place) as store:
        assert store.verify().ok
        with store.reader() as reader:
            assert len(reader) % 500 == 0
            assert np.array_equal(reader.keys()[:1000], make_keys(1000))
        append(store, make_keys(500, seed=1000))
        assert store.verify().ok


def _mount_small(path: Path) -> bool:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(path)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_a_full_disk_is_named(kind: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    if not _mount_small(disk):
        pytest.skip("mounting a small tmpfs needs rights this user lacks")
    try:
        store = create_store(disk / "store", kind=kind, columns=COLUMNS)
        committed = 0
        with pytest.raises(StorageError, match="No space"):
            for seed in range(1000):
                append(store, make_keys(200, seed=seed))
                committed += 200
        assert committed > 0
        with open_store(disk / "store") as again, again.reader() as reader:
            assert len(reader) == committed
            assert again.verify().ok
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_file_of_readers_has_its_bytes(tmp_path: Path) -> None:
    """LMDB maps it: on a full disk, a page without a place there would end the process by a signal, not by an error."""
    create_store(tmp_path / "store", kind="lmdb", columns=COLUMNS).close()
    files = list((tmp_path / "store").glob("*-lock"))
    assert files
    assert all(file.stat().st_blocks * 512 >= file.stat().st_size > 0 for file in files)


def test_a_disk_without_room_for_readers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Writing is refused; reading goes on without that file."""
    store = create_store(tmp_path / "store", kind="lmdb", columns=COLUMNS)
    append(store, make_keys(10))
    store.close()
    for file in (tmp_path / "store").glob("*-lock"):
        file.unlink()

    def full(handle: int, start: int, count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with open_store(tmp_path / "store") as again:
        with again.reader() as reader:
            assert len(reader) == 10
        with pytest.raises(StorageError, match="No space left on device"):
            append(again, make_keys(10, seed=1))


def give_up_writing_everywhere() -> None:
    """Let modes forbid this process, run by root, to write: it gives up the capability that sets them aside.

    It stays root and reads what it could: another user would not reach a checkout in a private folder.
    """
    overriding = 1 << 1  # CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of the first 32 capabilities, then of the others
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    for place in range(3):
        sets[place] &= ~overriding
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


READ_ONLY = """
import os, sys
sys.path.insert(0, {tests!r})
from featcache.testing.store import assert_holds, make_keys
from test_store_damage import give_up_writing_everywhere
from featcache.errors import StorageError
from featcache.store import open_store
if os.getuid() == 0:
    give_up_writing_everywhere()
store = open_store({path!r})
assert_holds(store, make_keys(1000))
assert store.verify().ok
try:
    store.writer()
except StorageError as error:
    print("refused:", error)
"""


def test_a_read_only_directory_can_be_read_and_not_written(place: Path) -> None:
    for folder in [place, *place.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    script = READ_ONLY.format(tests=str(Path(__file__).parent), path=str(place))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    for folder in [place, *place.rglob("*")]:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout


def test_no_address_space_is_named(place: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open_store(place) as store, store.reader() as reader:
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4096, hard))
        try:
            with pytest.raises((FeatcacheError, MemoryError)):
                reader.gather("tokens", np.arange(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert len(reader.gather("tokens", np.arange(1000))) == 1000
