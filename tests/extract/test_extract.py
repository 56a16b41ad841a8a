"""Extraction: rows do not depend on order, neighbours or threads; what goes wrong is recorded or raised; interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import write_photo
from fake import PREPROCESSING, FakeEngine, fake_extractor, fake_recipe

import featcache.extract.inputs.image_loader
from featcache.backbone.load import load_backbone
from featcache.cache import open_cache
from featcache.engines import Engine, Features, Images, open_engine
from featcache.errors import InputError, StorageError
from featcache.extract.build import build_cache
from featcache.extract.extraction import Extraction, Target, default_workers, extract
from featcache.extract.inputs import Extractor
from featcache.extract.settings import ExtractSettings
from featcache.images.load import load_image
from featcache.recipe import Preprocessing, Recipe
from featcache.store import Column, FeatureStore, create_store

ONE_RUN = ExtractSettings(burst=1)  # rows leave a worker after every run of the engine, not in bursts of several
STAGES = {"read", "decode", "resize", "network", "write", "wait"}


class Notes:
    """A writer that remembers what it was told; rows count as kept once committed."""

    def __init__(self) -> None:
        self.committed: dict[bytes, dict[str, npt.NDArray[Any]]] = {}
        self.commits: list[int] = []
        self._new: dict[bytes, dict[str, npt.NDArray[Any]]] = {}

    def __len__(self) -> int:
        return len(self.committed) + len(self._new)

    def find(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        known = [key.tobytes() in self.committed or key.tobytes() in self._new for key in keys]
        return np.where(known, 0, -1)

    def append(self, keys: npt.NDArray[np.uint8], columns: Mapping[str, npt.NDArray[Any]]) -> int:
        for position, key in enumerate(keys):
            assert key.tobytes() not in self._new
            self._new[key.tobytes()] = {name: values[position].copy() for name, values in columns.items()}
        return len(keys)

    def commit(self) -> None:
        self.commits.append(len(self._new))
        self.committed.update(self._new)
        self._new.clear()


def run(
    paths: list[Path], engine: Any = None, *, recipe: Recipe | None = None, notes: Notes | None = None, **kwargs: Any
) -> tuple[Extraction, Notes]:
    notes = Notes() if notes is None else notes
    target = Target(Extractor(engine or FakeEngine(), recipe or fake_recipe()), notes)  # type: ignore[arg-type]
    return extract([os.fspath(path) for path in paths], [target], progress=False, **kwargs), notes


def rows_of(extraction: Extraction, notes: Notes) -> npt.NDArray[Any]:
    return np.stack([notes.committed[key.tobytes()]["features"] for key in extraction.digests])


@pytest.fixture
def paths(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.jpg"))


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Engine, Preprocessing]]:
    backbone = load_backbone("test_efficientnet", weights="random:0")
    with open_engine(backbone, engine="openvino", batch_size=4, cached=False) as engine:
        yield engine, backbone.preprocessing


def test_rows_are_the_same_bits_in_any_order_and_beside_any_neighbour(
    paths: list[Path], network: tuple[Engine, Preprocessing]
) -> None:
    engine, preprocessing = network
    recipe = fake_recipe(preprocessing=preprocessing, decoder="fast", precision=engine.precision)
    whole = rows_of(*run(paths, engine, recipe=recipe, workers=2))
    assert whole.dtype == np.float16
    assert len(np.unique(whole, axis=0)) == len(paths)
    order = np.random.default_rng(0).permutation(len(paths))
    shuffled = rows_of(*run([paths[index] for index in order], engine, recipe=recipe, workers=3))
    np.testing.assert_array_equal(shuffled, whole[order])
    for index in (0, 7, 23):  # alone, and with others than before
        np.testing.assert_array_equal(rows_of(*run([paths[index]], engine, recipe=recipe))[0], whole[index])
    np.testing.assert_array_equal(rows_of(*run(paths[5:10], engine, recipe=recipe, workers=1)), whole[5:10])


def test_a_row_is_the_networks_output_of_the_images_own_pixels(
    paths: list[Path], network: tuple[Engine, Preprocessing]
) -> None:
    engine, preprocessing = network
    recipe = fake_recipe(preprocessing=preprocessing, decoder="fast", dtype="float32")
    pixels = np.stack([load_image(path.read_bytes(), preprocessing) for path in paths])
    np.testing.assert_array_equal(rows_of(*run(paths, engine, recipe=recipe)), engine.run(pixels)[0])


def test_what_became_of_each_image(paths: list[Path]) -> None:
    bad, copy_of_bad, missing, copy = (paths[0].with_name(name) for name in ("bad.jpg", "bad2.jpg", "no.jpg", "c.jpg"))
    bad.write_bytes(paths[3].read_bytes()[:500])
    copy_of_bad.write_bytes(bad.read_bytes())
    copy.write_bytes(paths[2].read_bytes())
    mixed = [paths[0], bad, paths[1], missing, paths[2], copy, copy_of_bad, *paths[3:]]
    extraction, notes = run(mixed, workers=2)
    assert set(extraction.failures) == {1, 3, 6}
    assert "truncated" in extraction.failures[1]
    assert extraction.failures[6] == extraction.failures[1]
    assert "cannot be opened" in extraction.failures[3]
    assert not extraction.digests[3].any()
    assert not extraction.stats[3].any()
    assert (extraction.extracted, extraction.reused) == (24, 1)
    good = [index for index in range(len(mixed)) if index not in extraction.failures]
    np.testing.assert_array_equal(extraction.stats[good, 0], [mixed[index].stat().st_size for index in good])
    alone, clean = run(paths)
    np.testing.assert_array_equal(
        rows_of(alone, clean), [notes.committed[k.tobytes()]["features"] for k in alone.digests]
    )


def test_rows_that_are_there_are_not_computed(paths: list[Path]) -> None:
    _, notes = run(paths[:10])
    engine = FakeEngine()
    extraction, _ = run(paths, engine, notes=notes, workers=1)
    assert (extraction.extracted, extraction.reused, engine.batches) == (14, 10, 2)
    assert len(notes.committed) == 24


def test_targets_share_reading_and_decoding(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def count(data: bytes, **kwargs: Any) -> Any:
        decoded.append(data)
        return decode(data, **kwargs)

    decode = featcache.extract.inputs.image_loader.decode
    monkeypatch.setattr(featcache.extract.inputs.image_loader, "decode", count)
    small = Preprocessing(16, 16, 20, "bicubic", "center", (0.5,) * 3, (0.5,) * 3)
    recipes = [fake_recipe(), fake_recipe(preprocessing=small), fake_recipe(dtype="float32", views=2)]
    targets = [Target(Extractor(FakeEngine(), recipe), Notes()) for recipe in recipes]  # type: ignore[arg-type]
    run(paths[:4], recipe=recipes[1], notes=targets[1].writer)  # type: ignore[arg-type]
    decoded.clear()
    together = extract([os.fspath(path) for path in paths], targets, workers=2, progress=False)
    assert len(decoded) == len(paths)
    assert (together.extracted, together.reused) == (24, 0)
    for recipe, target in zip(recipes, targets, strict=True):
        _, alone = run(paths, recipe=recipe)
        assert set(target.writer.committed) == set(alone.committed)  # type: ignore[attr-defined]
        for key, columns in alone.committed.items():
            for name, values in columns.items():
                np.testing.assert_array_equal(target.writer.committed[key][name], values)  # type: ignore[attr-defined]


def test_commits_come_after_so_many_rows_or_seconds(paths: list[Path]) -> None:
    _, notes = run(paths, workers=1, settings=ExtractSettings(commit_rows=16, burst=1))
    assert notes.commits == [16, 8]
    _, notes = run(paths, workers=1, settings=ExtractSettings(commit_seconds=0.0, burst=1))
    assert notes.commits == [8, 8, 8]


@pytest.mark.parametrize("wrong", [{"commit_rows": 0}, {"commit_seconds": -1.0}, {"burst": 0}])
def test_extract_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    """Settings that could never commit or compute are said at the border."""
    with pytest.raises(InputError, match="must be at least"):
        ExtractSettings(**wrong)  # type: ignore[arg-type]


class Interrupting(FakeEngine):
    """Sends this process a signal with its third batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _infer(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        rows = super()._infer(batch)
        if self.batches == 2:
            os.kill(os.getpid(), self.number)
            time.sleep(0.3)  # the signal reaches the main thread before this one goes on
        return rows


@pytest.fixture(params=["lmdb", "zarr"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    columns = [Column("features", (48,), "float16")]
    with create_store(tmp_path / "store", kind=request.param, columns=columns) as opened:
        yield opened


def stored_rows(store: FeatureStore) -> dict[bytes, bytes]:
    with store.reader() as reader:
        rows = reader.gather("features", np.arange(len(reader)))
        return {key.tobytes(): row.tobytes() for key, row in zip(reader.keys(), rows, strict=True)}


def test_an_interrupt_commits_what_is_computed_and_the_next_run_carries_on(
    paths: list[Path], store: FeatureStore, request: pytest.FixtureRequest
) -> None:
    names = [os.fspath(path) for path in paths]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        extract(
            names,
            [Target(Extractor(Interrupting(signal.SIGINT), fake_recipe()), writer)],
            workers=1,
            settings=ONE_RUN,
            progress=False,
        )
    kept = stored_rows(store)
    assert len(kept) == 16  # two batches of eight: the one in hand was finished
    with store.writer() as writer:
        extraction = extract(names, [Target(Extractor(FakeEngine(), fake_recipe()), writer)], progress=False)
    assert (extraction.extracted, extraction.reused) == (8, 16)
    _, whole = run(paths)
    assert stored_rows(store) == {key: row["features"].tobytes() for key, row in whole.committed.items()}
    assert kept.items() <= stored_rows(store).items()


_KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from fake import FakeEngine, fake_recipe
from featcache.extract.build import Extractor, build_cache
from featcache.extract.settings import ExtractSettings

class Dying(FakeEngine):
    def _infer(self, batch):
        if self.batches == int(sys.argv[4]):
            os._exit(9)
        return super()._infer(batch)

build_cache(
    sys.argv[2], sys.argv[3], extractor=Extractor(Dying(), fake_recipe()), store=sys.argv[5], workers=1,
    settings=ExtractSettings(commit_rows=8),
)
"""


@pytest.mark.parametrize(("kind", "batches"), [("lmdb", 2), ("zarr", 1), ("lmdb", 0)])
def test_killed_in_the_middle_and_run_again_gives_the_same_content(
    photos: Path, tmp_path: Path, kind: str, batches: int
) -> None:
    cache = tmp_path / "cache"
    command = [
        sys.executable,
        "-c",
        _KILLED,
        str(Path(__file__).parent.parent),
        str(photos),
        str(cache),
        str(batches),
        kind,
    ]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 9
    report = build_cache(photos, cache, extractor=fake_extractor())
    assert report.rows == 24
    assert 8 <= report.extracted <= 24
    build_cache(photos, tmp_path / "whole", extractor=fake_extractor(), store="zarr" if kind == "lmdb" else "lmdb")
    with open_cache(cache) as resumed, open_cache(tmp_path / "whole") as whole:
        assert resumed.content_digest() == whole.content_digest()


def extracting_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("extract-")]


@pytest.mark.parametrize("where", ["append", "commit", "find"])
def test_what_the_store_refuses_is_raised_and_every_thread_ends(
    paths: list[Path], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise StorageError("no space left on the disk")

    _, notes = run(paths[:2])
    monkeypatch.setattr(notes, where, refuse)
    with pytest.raises(StorageError, match="no space"):
        run(paths, notes=notes, workers=3)
    assert not extracting_threads()


@pytest.mark.parametrize(("value", "message"), [(np.nan, "must be finite"), (70000.0, "float16.*--dtype float32")])
def test_features_that_cannot_be_stored_stop_the_run_after_what_came_before(
    paths: list[Path], value: float, message: str
) -> None:
    class Bad(FakeEngine):
        def _infer(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
            (rows,) = super()._infer(batch)
            if self.batches == 3:
                rows[1, 2] = value
            return (rows,)

    notes = Notes()
    with pytest.raises(InputError, match=message):
        run(paths, Bad(), notes=notes, workers=1, settings=ExtractSettings(commit_rows=8, burst=1))
    assert len(notes.committed) == 16
    assert not extracting_threads()
    if np.isfinite(value):
        assert run(paths, Bad(), recipe=fake_recipe(dtype="float32"))[0].extracted == 24


def test_no_images_and_no_workers(paths: list[Path]) -> None:
    extraction, notes = run([])
    assert (extraction.extracted, extraction.reused, extraction.failures, notes.commits) == (0, 0, {}, [])
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        run(paths, workers=0)


def test_nothing_but_failures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("text")
    extraction, notes = run([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert sorted(extraction.failures) == [0, 1]
    assert (extraction.extracted, notes.committed) == (0, {})


# --- where the time goes --------------------------------------------------------------------------------------------


class Slow(FakeEngine):
    def _infer(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        time.sleep(0.1)
        return super()._infer(batch)


def test_seconds_by_stage_show_the_bottleneck(paths: list[Path]) -> None:
    threads = 2
    extraction, _ = run(paths, Slow(), workers=threads, settings=ONE_RUN)
    seconds = extraction.seconds_by_stage
    assert set(seconds) == STAGES
    assert seconds["network"] >= 0.3  # three batches, perhaps four, of a tenth of a second
    assert max(seconds, key=lambda stage: seconds[stage]) == "network"
    assert min(seconds["read"], seconds["decode"], seconds["resize"], seconds["write"]) > 0
    assert sum(seconds.values()) <= (threads + 1) * extraction.extract_seconds

    notes = Notes()
    append = notes.append
    notes.append = lambda keys, columns: time.sleep(0.2) or append(keys, columns)  # type: ignore[method-assign]
    slow_writer = run(paths, notes=notes, workers=threads, settings=ONE_RUN)[0].seconds_by_stage
    assert slow_writer["write"] >= 0.6
    assert max(slow_writer, key=lambda stage: slow_writer[stage]) in ("write", "wait")


def test_seconds_by_stage_are_part_of_the_build_report(photos: Path, tmp_path: Path) -> None:
    report = build_cache(photos, tmp_path / "cache", extractor=fake_extractor()).to_json()
    assert set(report["seconds_by_stage"]) == STAGES
    assert report["images_per_second"] == pytest.approx(24 / report["extract_seconds"])
    assert build_cache(photos, tmp_path / "cache", extractor=fake_extractor()).to_json()["seconds_by_stage"] == {}


# --- devices --------------------------------------------------------------------------------------------------------


class Device(Engine):
    """What a GPU looks like from here: two calls at once that leave the processors free."""

    name = "torch"
    version = "2"
    precision = "fp32"
    batch_size = 8
    height = width = PREPROCESSING.width
    columns = (("features", (48,)),)
    workers = 2
    on_device = True

    def __init__(self) -> None:
        self._rows = FakeEngine()

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        return self._rows.run(batch)

    def _release(self) -> None:
        """Nothing is held."""


def test_threads_that_wait_for_a_device_come_on_top_of_those_that_decode(tmp_path: Path) -> None:
    assert default_workers([Device()], processors=3) == 5
    assert default_workers([FakeEngine(), Device(), Device()], processors=3) == 7
    assert default_workers([FakeEngine()], processors=3) == 3
    for seed in range(40):
        write_photo(tmp_path / f"{seed}.jpg", seed=seed, size=(20, 20))
    files = sorted(tmp_path.glob("*.jpg"))
    extraction, notes = run(files, Device(), workers=5)
    np.testing.assert_array_equal(rows_of(extraction, notes), rows_of(*run(files)))


def test_a_writer_is_told_by_one_thread_at_a_time(paths: list[Path]) -> None:
    class Checked(Notes):
        inside = 0

        def _alone(self) -> None:
            assert Checked.inside == 1

        def find(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
            Checked.inside += 1
            time.sleep(0.002)
            self._alone()
            Checked.inside -= 1
            return super().find(keys)

        def append(self, keys: npt.NDArray[np.uint8], columns: Mapping[str, npt.NDArray[Any]]) -> int:
            Checked.inside += 1
            time.sleep(0.002)
            self._alone()
            Checked.inside -= 1
            return super().append(keys, columns)

    notes = Checked()
    run(paths[:4], notes=notes)
    assert run(paths, notes=notes, workers=4)[0].extracted == 20
