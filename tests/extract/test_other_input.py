"""A program's own input kind, rows of numbers in CSV files, goes through build and train as featcache's own do."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import featcache
from featcache.datasets.folder import scan_folder
from featcache.datasets.listing import Listing, Task
from featcache.datasets.walk import find_files
from featcache.engines import Engine
from featcache.errors import InputError, SampleError
from featcache.extract.build import build_cache
from featcache.extract.inputs import Extractor, Input, register_input
from featcache.extract.request import Request
from featcache.recipe import Recipe

WIDTH = 6


@dataclass(frozen=True)
class NumbersPreprocessing:
    """How many numbers of a file count."""

    input: ClassVar[str] = "numbers"
    width: int = WIDTH

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NumbersPreprocessing:
        return cls(**values)


class SquaresEngine(Engine):
    """Numbers, and their squares."""

    name, version, precision, batch_size, workers = "squares", "1", "fp32", 4, 1
    columns: tuple[tuple[str, tuple[int, ...]], ...] = (("features", (2 * WIDTH,)),)
    input_shape, input_dtype = (WIDTH,), np.float32  # type: ignore[assignment]

    def _infer(self, batch: Any) -> tuple[Any, ...]:
        return (np.concatenate([batch, batch**2], axis=1),)

    def _release(self) -> None:
        """Nothing is held."""


class NumbersInput(Input):
    """Files called .num that hold numbers between spaces."""

    name, noun, default_backbone = "numbers", "row", "squares"
    recipe_options = ("width",)

    def recognizes(self, source: str) -> bool:
        return os.path.isdir(source) and any(name.endswith(".num") for _, _, names in os.walk(source) for name in names)

    def scan(
        self, source: str | os.PathLike[str], *, task: Task | None = None, splits: bool = True,
        known_classes: Collection[str] = (), options: Mapping[str, Any] | None = None,
    ) -> Listing:  # fmt: skip
        files = find_files(os.fspath(source), frozenset({"num"}))
        listing = scan_folder(os.fspath(source), files, 0, splits=splits, known=frozenset(known_classes))
        return dataclasses.replace(listing, input=self.name)

    def open_extractor(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        preprocessing = NumbersPreprocessing(**self.chosen(request.input_options, self.recipe_options))
        recipe = Recipe(
            model="squares", model_kwargs={}, model_digest=None, weights_sha256=hashlib.sha256(b"").hexdigest(),
            outputs=("features",), preprocessing=preprocessing, decoder="none", dct_scaling=False, orientation="none",
            views=1, view_seed=0, engine="squares", engine_version="1", precision="fp32", dtype="float32",
            weights="none",
        )  # fmt: skip
        return Extractor(SquaresEngine(), recipe)

    def decode(self, data: bytes, recipe: Recipe) -> Any:
        try:
            numbers = np.array(data.split(), dtype=np.float32)
        except ValueError as error:
            raise SampleError("must hold numbers") from error
        if len(numbers) != WIDTH:
            raise SampleError(f"must hold {WIDTH} numbers, has {len(numbers)}")
        return numbers


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The kind, known to this process for as long as this file runs."""
    from featcache import recipe
    from featcache.extract.inputs import registry

    register_input(NumbersInput(), NumbersPreprocessing)
    yield
    del registry._kinds["numbers"], recipe._kinds["numbers"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty rows of two classes that differ in their squares alone, one of letters and one too short."""
    rng = np.random.default_rng(0)
    for number in range(40):
        label, scale = ("wide", 3.0) if number % 2 else ("narrow", 0.5)
        place = tmp_path / "rows" / label / f"{number:02}.num"
        place.parent.mkdir(parents=True, exist_ok=True)
        signs = rng.choice([-1.0, 1.0], WIDTH)
        place.write_text(" ".join(f"{value:.4f}" for value in scale * signs * rng.uniform(0.8, 1.2, WIDTH)))
    (tmp_path / "rows/wide/letters.num").write_text("a b c")
    (tmp_path / "rows/wide/short.num").write_text("1 2")
    return tmp_path / "rows"


def test_own_kind_builds_trains_and_is_known_again(folder: Path, tmp_path: Path) -> None:
    report = build_cache(folder, tmp_path / "cache")
    assert (report.extracted, report.num_features) == (40, 2 * WIDTH)
    assert dict(report.failures) == {
        "wide/letters.num": "must hold numbers", "wide/short.num": f"must hold {WIDTH} numbers, has 2",
    }  # fmt: skip
    again = build_cache(folder, tmp_path / "cache")
    assert (again.extracted, again.reused, again.failed) == (0, 40, 2)
    assert featcache.train_head(tmp_path / "cache").val_accuracy == 1.0
    with featcache.open_cache(tmp_path / "cache") as opened:
        assert opened.recipe.input == "numbers" and opened.samples().listing.input == "numbers"
        with opened.reader() as reader:
            rows = opened.gather(reader.find(opened.samples().digests[:1]), output=["features"])
        np.testing.assert_allclose(rows[0, WIDTH:], rows[0, :WIDTH] ** 2, rtol=1e-5)


def test_own_kind_has_its_own_options_only(folder: Path, tmp_path: Path) -> None:
    build_cache(folder, tmp_path / "cache", input_options={"width": WIDTH})
    with pytest.raises(InputError, match="'max_length': it has width"):
        build_cache(folder, tmp_path / "other", input="numbers", input_options={"max_length": 3})
    with pytest.raises(InputError, match="'numbers' is taken"):
        register_input(NumbersInput(), NumbersPreprocessing)
