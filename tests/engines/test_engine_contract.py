"""The laws of an engine, for featcache's own and for one that is written here and added by its name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from featcache.backbone.backbone import Backbone
from featcache.backbone.load import load_backbone
from featcache.engines import Engine, Features, Images, open_engine, register_engine
from featcache.errors import InputError
from featcache.extract.build import build_cache
from featcache.testing.engines import EngineContract

NAME = "test_resnet"


@cache
def backbone() -> Backbone:
    return load_backbone(NAME, weights="random:0", outputs=("features", "stage1"))


class BuiltIn(EngineContract):
    """An engine of featcache, opened once for most of the laws."""

    name: str

    def open(self) -> Engine:
        return open_engine(backbone(), engine=self.name, precision="fp32", batch_size=4, cached=False)

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        yield _kept(self.name)


@cache
def _kept(name: str) -> Engine:
    return open_engine(backbone(), engine=name, precision="fp32", batch_size=4, cached=False)


class TestOpenVino(BuiltIn):
    name = "openvino"


class TestOnnxRuntime(BuiltIn):
    name = "onnxruntime"


class TestTorch(BuiltIn):
    name = "torch"


# --- an engine of one's own -----------------------------------------------------------------------------------------


class ColourEngine(Engine):
    """Each channel's mean over the image, whatever the backbone: the least an engine can be."""

    name = "colour"
    version = "1"
    precision = "fp32"
    workers = 2
    columns = (("features", (3,)),)

    def __init__(self, height: int, width: int, batch_size: int) -> None:
        self.height, self.width, self.batch_size = height, width, batch_size

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        return (batch.mean(axis=(1, 2), dtype=np.float64).astype(np.float32),)

    def _release(self) -> None:
        pass


def open_colour(network: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> Engine:
    if precision not in ("auto", "fp32"):
        raise InputError(f"the colour engine computes in fp32, got {precision!r}")
    return ColourEngine(network.preprocessing.height, network.preprocessing.width, batch_size or 4)


register_engine("colour", open_colour, package="numpy")


class TestColour(EngineContract):
    """An engine from outside under the same laws, opened by its name."""

    def open(self) -> Engine:
        return open_engine(backbone(), engine="colour", batch_size=3)


def test_registered_engine_builds_a_cache_and_adds_to_it(photos: Path, tmp_path: Path) -> None:
    """Its name stands in the Recipe, and the next build finds it there."""
    first = build_cache(photos, tmp_path / "cache", backbone=NAME, weights="random:0", engine="colour")
    assert (first.extracted, first.num_features) == (24, 3)
    (photos / "dog" / "copy.jpg").write_bytes((photos / "dog" / "00.jpg").read_bytes())
    again = build_cache(photos, tmp_path / "cache")
    assert (again.extracted, again.reused) == (0, 25)


def test_engine_name_that_is_taken_or_unknown_is_refused() -> None:
    """One name, one engine."""
    with pytest.raises(InputError, match="'colour' is taken"):
        register_engine("colour", open_colour, package="numpy")
    with pytest.raises(InputError, match=r"engine must be 'auto' or one of .*'colour'.*got 'tensorflow'"):
        open_engine(backbone(), engine="tensorflow")
