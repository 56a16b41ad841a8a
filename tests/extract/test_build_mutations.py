"""A thousand random changes of images, names, labels, splits and Recipe: no stale row, no needless extraction."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import write_photo
from fake import PREPROCESSING, SIZE, FakeEngine, fake_recipe

from featcache.cache import open_cache
from featcache.cache.cache import column_name
from featcache.datasets.splits import assign_splits
from featcache.errors import RecipeMismatchError
from featcache.extract.build import BuildReport, build_cache
from featcache.images.load import load_image
from featcache.images.views import draw_view
from featcache.recipe import Preprocessing, Recipe

MUTATIONS = 1000


class Network(FakeEngine):
    """Rows that depend on everything a Recipe names: on pixels, and on a seed made of the rest."""

    def __init__(self, seed: str, precision: str) -> None:
        super().__init__()
        self.precision = precision
        self.mask = np.frombuffer(hashlib.sha256(seed.encode()).digest(), dtype=np.uint8).astype(np.float32) / 64

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        (rows,) = super()._infer(batch)
        return (rows + np.resize(self.mask, 48),)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Let the real path from request to Recipe and engine end in fakes; return the engines it opened."""
    opened: list[Network] = []

    def load(name: str, **asked: Any) -> SimpleNamespace:
        weights = hashlib.sha256(Path(asked["weights"]).read_bytes()).hexdigest()
        mean = asked["mean"] or PREPROCESSING.mean
        return SimpleNamespace(
            model_name=name, model_kwargs=dict(asked["model_kwargs"] or {}), weights_sha256=weights,
            outputs=tuple(asked["outputs"]), weights_label="file",
            preprocessing=Preprocessing(SIZE, SIZE, SIZE, "bicubic", "center", mean, (0.5, 0.5, 0.5)),
        )  # fmt: skip

    def engine(backbone: SimpleNamespace, *, engine: str, precision: str) -> Network:
        precision = "fp32" if precision == "auto" else precision
        told = f"{backbone.model_kwargs} {backbone.weights_sha256} {backbone.preprocessing} {precision}"
        opened.append(Network(told, precision))
        return opened[-1]

    monkeypatch.setattr("featcache.backbone.load.load_backbone", load)
    monkeypatch.setattr("featcache.engines.open_engine", engine)
    return opened


class World:
    """A data set, what is asked for, and what must therefore be in the caches; the caches are kept by fingerprint."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.place, self.photos, self.weights = place, place / "photos", place / "weights"
        self.counter = 0
        self.asked: dict[str, Any] = {"precision": "fp32", "decoder": "pillow"}
        self.labels: dict[str, tuple[str, str]] = {}
        self.rows: dict[Path, set[str]] = {}  # cache → digests it has rows for
        self.truth: dict[tuple[str, str, int], np.ndarray] = {}
        self.photos.mkdir()
        self.write_weights(b"first")
        for _ in range(6):
            self.add()

    # --- the mutations ---

    def write_weights(self, data: bytes) -> None:
        self.weights.write_bytes(data)

    def any_photo(self) -> str:
        return self.random.choice(sorted(self.labels))

    def any_label(self) -> tuple[str, str]:
        return self.random.choice(["cat", "dog", ""]), self.random.choice(["", "", "train", "val", "test"])

    def add(self) -> None:
        self.counter += 1
        name = f"{self.random.choice('ab')}/{self.counter}{self.random.choice(['.jpg', '.png', '.JPEG'])}"
        write_photo(self.photos / name, seed=self.counter, size=(20, 18))
        self.labels[name] = self.any_label()

    def add_equal(self) -> None:
        self.counter += 1
        source = self.any_photo()
        name = f"a/equal{self.counter}{Path(source).suffix}"
        (self.photos / "a").mkdir(exist_ok=True)
        shutil.copy2(self.photos / source, self.photos / name)
        self.labels[name] = self.any_label()

    def delete(self) -> None:
        name = self.any_photo()
        if len(self.labels) > 3:
            (self.photos / name).unlink()
            del self.labels[name]

    def rename(self) -> None:
        self.counter += 1
        name = self.any_photo()
        new = f"moved{self.random.choice('cd')}/{self.counter}{Path(name).suffix}"
        (self.photos / new).parent.mkdir(exist_ok=True)
        (self.photos / name).rename(self.photos / new)
        self.labels[new] = self.labels.pop(name)

    def swap(self) -> None:
        first, second = self.any_photo(), self.any_photo()
        if Path(first).suffix == Path(second).suffix and first != second:
            (self.photos / first).rename(self.photos / "swap")
            (self.photos / second).rename(self.photos / first)
            (self.photos / "swap").rename(self.photos / second)

    def label(self) -> None:
        self.labels[self.any_photo()] = self.any_label()

    def bytes_of_an_image(self) -> None:
        self.counter += 1
        write_photo(self.photos / self.any_photo(), seed=self.counter, size=(20, 18))

    def same_size_with_restored_times(self) -> None:
        file = self.photos / self.any_photo()
        before, data = file.stat(), bytearray(file.read_bytes())
        if len(data) < 20:
            return
        data[-20] ^= 1 << self.random.randrange(8)
        with open(file, "r+b") as handle:
            handle.write(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    def touch(self) -> None:
        os.utime(self.photos / self.any_photo())

    def torn(self) -> None:
        file = self.photos / self.any_photo()
        file.write_bytes(file.read_bytes()[: self.random.choice([0, 3, 200])])

    def weights_of_the_same_size_and_time(self) -> None:
        before = self.weights.stat()
        self.write_weights(self.random.choice([b"first", b"other", b"third"]))
        os.utime(self.weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    def kwargs(self) -> None:
        self.asked["model_kwargs"] = self.random.choice([{}, {"pad_type": "same"}])

    def preprocessing(self) -> None:
        self.asked["mean"] = self.random.choice([(0.5, 0.5, 0.5), (0.4, 0.5, 0.6)])

    def precision(self) -> None:
        self.asked["precision"] = self.random.choice(["fp32", "bf16"])

    def decoder(self) -> None:
        self.asked["decoder"] = self.random.choice(["fast", "pillow"])

    def views(self) -> None:
        self.asked["views"], self.asked["view_seed"] = self.random.choice([(1, 0), (2, 0), (2, 1)])

    # --- what must hold ---

    def recipe(self) -> Recipe:
        """Return the Recipe of what is asked for, by other means than the build's."""
        mean = self.asked.get("mean", PREPROCESSING.mean)
        return fake_recipe(
            model_kwargs=self.asked.get("model_kwargs", {}), precision=self.asked["precision"],
            decoder=self.asked["decoder"], views=self.asked.get("views", 1), view_seed=self.asked.get("view_seed", 0),
            weights_sha256=hashlib.sha256(self.weights.read_bytes()).hexdigest(),
            preprocessing=Preprocessing(SIZE, SIZE, SIZE, "bicubic", "center", mean, (0.5, 0.5, 0.5)),
        )  # fmt: skip

    def build(self, cache: Path) -> BuildReport:
        with open(self.photos / "list.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            writer.writerows((path, *self.labels[path]) for path in self.labels)
        return build_cache(
            self.photos / "list.csv", cache, backbone="fake", weights=self.weights, workers=1,
            task="classification", **self.asked,
        )  # fmt: skip

    def row(self, data: bytes, recipe: Recipe, view: int) -> np.ndarray | None:
        """Return the row of an image, computed afresh; None where it cannot be decoded."""
        key = hashlib.sha256(data).hexdigest(), recipe.fingerprint, view
        if key not in self.truth:
            try:
                drawn = draw_view(recipe.view_seed, hashlib.sha256(data).digest(), view)
                pixels = load_image(data, recipe.preprocessing, decoder=recipe.decoder, view=drawn)
            except ValueError:
                self.truth[key] = np.empty(0)
            else:
                told = f"{recipe.model_kwargs} {recipe.weights_sha256} {recipe.preprocessing} {recipe.precision}"
                (rows,) = Network(told, recipe.precision).run(np.stack([pixels] * 8))
                self.truth[key] = rows[0].astype(np.float16)
        found = self.truth[key]
        return found if len(found) else None

    def check(self, before: Path | None) -> Path:
        """Build into the cache of the Recipe asked for, and compare every row; the cache used `before` refuses it."""
        recipe = self.recipe()
        cache = self.place / recipe.fingerprint[:16]
        if before is not None and before != cache:
            with pytest.raises(RecipeMismatchError):
                self.build(before)
        report = self.build(cache)
        data = {path: (self.photos / path).read_bytes() for path in sorted(self.labels)}
        good = {path: self.row(one, recipe, 0) is not None for path, one in data.items()}
        needed = {hashlib.sha256(data[path]).hexdigest() for path in data if good[path]}
        known = self.rows.setdefault(cache, set())
        assert report.extracted == len(needed - known), "needless or missing extractions"
        assert report.failed == sum(not fine for fine in good.values())
        known |= needed
        with open_cache(cache) as opened, opened.reader() as reader:
            assert opened.recipe.fingerprint == recipe.fingerprint
            samples = opened.samples()
            assert samples.paths == sorted(data)
            classes = samples.classes
            for index, path in enumerate(samples.paths):
                label, split = self.labels[path]
                assert (classes[samples.labels[index]] if samples.labels[index] >= 0 else "") == label
                assert samples.listing.given_splits[index] == {"": 255, "train": 0, "val": 1, "test": 2}[split]
                assert (index in samples.failures) is not good[path]
            drawn = assign_splits(samples.listing, samples.digests, seed=0, failed=samples.failures)
            assert np.array_equal(samples.splits, drawn)
            for view in range(recipe.views):
                rows = reader.find(samples.digests)
                for index, path in enumerate(samples.paths):
                    if good[path]:
                        stored = reader.gather(column_name("features", view), rows[index : index + 1])[0]
                        assert np.array_equal(stored, self.row(data[path], recipe, view)), "a stale row"
            assert len(reader) == len(known)
        return cache


@pytest.fixture
def quick_place(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in memory where there is one: a thousand builds wait for the disk else."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as place:
        yield Path(place)


def test_no_stale_row_and_no_needless_extraction(quick_place: Path, networks: list[Network]) -> None:
    world = World(quick_place, seed=11)
    of_images = [
        world.add, world.add_equal, world.delete, world.rename, world.swap, world.label, world.bytes_of_an_image,
        world.same_size_with_restored_times, world.touch, world.torn,
    ]  # fmt: skip
    of_recipe = [
        world.weights_of_the_same_size_and_time, world.kwargs, world.preprocessing, world.precision, world.decoder,
        world.views,
    ]  # fmt: skip
    cache = world.check(None)
    done = 0
    while done < MUTATIONS:
        # Usually several at once: they must not hide one another either.
        for _ in range(world.random.randint(1, 5)):
            world.random.choice(of_recipe if world.random.random() < 0.15 else of_images)()
            done += 1
        while len(world.labels) > 10:
            world.delete()
        cache = world.check(cache)
    assert len(world.rows) > 10
    assert networks
