"""A device format from outside: written here, registered with one call, held to the contract, exported with."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from export_models import saved_model

from featcache.bundle.exporting import export
from featcache.engines.session import open_session
from featcache.errors import InputError
from featcache.formats import Converted, ModelFacts, Runner, Target, find_target, register_target
from featcache.formats.interface import classifier_tensors
from featcache.formats.registry import unregister_target
from featcache.runtime import open_bundle
from featcache.testing.formats import TargetContract


class ZippedTarget(Target):
    """The ONNX file, compressed."""

    name = "zipped"
    needs = "nothing"

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return f"zlib {zlib.ZLIB_RUNTIME_VERSION}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        (folder / "model.zlib").write_bytes(zlib.compress(onnx_path.read_bytes()))
        return Converted((folder / "model.zlib",), classifier_tensors(facts))

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        return ZippedRunner(zlib.decompress(files[0].read_bytes()), threads)


class ZippedRunner(Runner):
    def __init__(self, model: bytes, threads: int) -> None:
        self._session = open_session(model, threads=threads)

    def run(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(["logits"], {"image": images})[0]

    def close(self) -> None:
        del self._session


class TestZippedTarget(TargetContract):
    @pytest.fixture(scope="class")
    @classmethod
    def target(cls) -> Target:
        return ZippedTarget()


@pytest.fixture
def registered() -> Iterator[None]:
    register_target("zipped", ZippedTarget)
    yield
    unregister_target("zipped")


@pytest.mark.usefixtures("registered")
def test_export_with_a_registered_target_makes_a_bundle_that_runs(tmp_path: Path) -> None:
    """One call makes the format known to `export`, to the report and to who opens the bundle."""
    report = export(saved_model(tmp_path / "model"), out=tmp_path / "bundle", formats=["zipped"])
    assert report.formats["zipped"].executed
    assert report.formats["zipped"].files == ("zipped/model.zlib",)
    bundle = open_bundle(tmp_path / "bundle")
    with bundle.open("zipped", threads=1) as runner, bundle.open("onnx", threads=1) as reference:
        images = np.zeros((1, bundle.preprocessing.height, bundle.preprocessing.width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(runner.run(images), reference.run(images))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["zipped", "onnx", "all", "torch", "../up", "Upper", ""])
def test_register_target_under_a_taken_or_odd_name_is_refused(name: str) -> None:
    """A name is a folder's in a bundle, and no format can be replaced."""
    with pytest.raises(InputError, match="a format's name must be"):
        register_target(name, ZippedTarget)
    assert type(find_target("onnx")).__name__ == "OnnxTarget"
