"""What every device format must do, as tests.

    class TestMyTarget(TargetContract):
        @pytest.fixture(scope="class")
        @classmethod
        def target(cls) -> Target:
            return MyTarget()

A small classifier is converted as floats, then with stored scales, then as floats again, by one target object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featcache.errors import DependencyError
from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.formats.interface import Converted, ModelFacts, Runner, Target
from featcache.graph.qdq import apply_quantization
from featcache.heads.agreement import logit_tolerance
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.recipe import Preprocessing

CLASSES = ("cat", "dog, wet", "Öl")
_SIDE = 32
_OPSET = 18
_REFERENCE_OPSET = 21  # the reference implementation has no DequantizeLinear of 18, whose meaning is the same
_INTEGER_TOLERANCE = 0.1  # of the largest logit: 8 bits of a small network, computed in whatever way
Images = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Conversions:
    """The classifier converted by one target object three times, in this order, each into a folder of its own."""

    plain: Converted
    quantized: Converted
    plain_again: Converted
    folders: tuple[Path, Path, Path]


class TargetContract:
    """Tests of one `Target`; the fixture `target` says which. What cannot be installed or run here is skipped."""

    @pytest.fixture(scope="class")
    @classmethod
    def target(cls) -> Target:
        """Return the target under test; here raises `NotImplementedError`."""
        raise NotImplementedError("a class of TargetContract must have a fixture 'target' of scope 'class'")

    @pytest.fixture(scope="class")
    @classmethod
    def conversions(cls, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Conversions:
        """Return what `target` makes of the classifier; skips where its tools are not installed."""
        reason = target.available()
        if reason is not None:
            pytest.skip(f"{target.name}: {reason}; {target.needs}")
        place = tmp_path_factory.mktemp(target.name)
        folders = (place / "plain", place / "quantized", place / "plain_again")
        results = []
        for folder, quantized in zip(folders, (False, True, False), strict=True):
            folder.mkdir()
            graph = place / f"{folder.name}.onnx"
            onnx.save(quantized_classifier() if quantized else float_classifier(), graph)
            results.append(target.convert(graph, folder, facts=classifier_facts(quantized=quantized)))
        plain, quantized_file, plain_again = results
        return Conversions(plain, quantized_file, plain_again, folders)

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, target: Target, conversions: Conversions) -> Iterator[Runner]:
        """Return the float file, loaded; skips where nothing here computes it."""
        runner = open_here(target, conversions.plain)
        if runner is None:
            pytest.skip(f"{target.name}: {target.executable()}")
        with runner:
            yield runner

    def test_target_names_itself_and_what_it_needs(self, target: Target) -> None:
        """The name is a folder's in a bundle and a word on the command line."""
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", target.name)
        assert target.needs
        assert target.tolerance > 0
        assert not (target.packages and target.environment)

    def test_target_without_tools_is_refused(self, target: Target) -> None:
        """`require` raises exactly where `available` gives a reason; installed, it has a version."""
        if target.available() is None:
            target.require()
            assert target.version()
        else:
            with pytest.raises(DependencyError, match=re.escape(target.needs)):
                target.require()

    def test_convert_returns_the_files_it_wrote(self, conversions: Conversions) -> None:
        """Nothing else is left in the folder, and nothing outside it."""
        made = (conversions.plain, conversions.quantized, conversions.plain_again)
        for converted, folder in zip(made, conversions.folders, strict=True):
            assert converted.files
            assert sorted(converted.files) == sorted(path for path in folder.rglob("*") if path.is_file())

    def test_convert_of_equal_files_gives_equal_bytes(self, conversions: Conversions) -> None:
        """Another model in between leaves no trace, and no path of this machine gets into a file."""
        for first, second in zip(conversions.plain.files, conversions.plain_again.files, strict=True):
            assert first.read_bytes() == second.read_bytes(), first.name
            assert str(conversions.folders[0].parent).encode() not in first.read_bytes()
        assert conversions.plain.to_json() == conversions.plain_again.to_json()
        assert conversions.plain.takes_scales == conversions.plain_again.takes_scales

    def test_convert_describes_its_tensors(self, conversions: Conversions) -> None:
        """What stands in preprocess.json is JSON: inputs and outputs first, numbers of a quantized model only."""
        for converted in (conversions.plain, conversions.quantized):
            entry = converted.to_json()
            assert list(entry)[:2] == ["inputs", "outputs"]
            assert entry["inputs"] and entry["outputs"]
            json.dumps(entry, allow_nan=False)
        assert conversions.plain.numbers is None
        assert conversions.quantized.takes_scales or conversions.quantized.numbers

    def test_run_gives_the_reference_logits(self, target: Target, runner: Runner) -> None:
        """Whatever the number of images; the images are left as they are."""
        for count in (1, 3):
            images = random_images(count)
            before = images.copy()
            logits = runner.run(images)
            expected = reference_logits(float_classifier(), images)
            assert (logits.shape, logits.dtype) == (expected.shape, np.dtype(np.float32))
            assert np.abs(logits - expected).max() <= logit_tolerance(expected, target.tolerance)
            np.testing.assert_array_equal(images, before)

    def test_time_gives_milliseconds_of_single_runs(self, runner: Runner) -> None:
        """At least as many as asked for."""
        times = runner.time(random_images(1), seconds=0.01, least=3)
        assert len(times) >= 3
        assert min(times) > 0

    def test_quantized_file_answers_as_its_stored_scales(self, target: Target, conversions: Conversions) -> None:
        """In integers or in floats, as it says."""
        images = random_images(4)
        expected = reference_logits(quantized_classifier(), images)
        runner = open_here(target, conversions.quantized)
        if runner is None:
            pytest.skip(f"{target.name}: {target.executable()}")
        with runner:
            assert np.abs(runner.run(images) - expected).max() <= _INTEGER_TOLERANCE * np.abs(expected).max()


def open_here(target: Target, converted: Converted) -> Runner | None:
    """Return the files in their runtime or another that computes them, None where there is none here."""
    if target.executable() is None:
        return target.open(converted.files, threads=1)
    return target.reference_runner(converted.files, threads=1)


def classifier_facts(*, quantized: bool) -> ModelFacts:
    """Return the facts of the contract's classifier."""
    size = Preprocessing(_SIDE, _SIDE, _SIDE, "bilinear", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ModelFacts("contract", CLASSES, DeployedImages(size), {}, quantized=quantized)


def random_images(count: int) -> Images:
    """Return the same `count` images (count, 32, 32, 3) uint8 every time: a colour each, and noise."""
    generator = np.random.default_rng(1)
    colours = generator.integers(0, 200, size=(count, 1, 1, 3))
    return (colours + generator.integers(0, 56, size=(count, _SIDE, _SIDE, 3))).astype(np.uint8)


def reference_logits(model: onnx.ModelProto, images: Images) -> Logits:
    """Return the logits (n, 3) float32 as ONNX' own reference implementation computes them."""
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version = _REFERENCE_OPSET
    (logits,) = ReferenceEvaluator(newer).run(["logits"], {"image": images})
    return np.asarray(logits, dtype=np.float32)


def float_classifier() -> onnx.ModelProto:
    """Return a small classifier as `featcache.graph.write` writes it: uint8 image in, logits and probabilities out."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, gain: float) -> npt.NDArray[np.float32]:
        return (generator.standard_normal(shape) * gain).astype(np.float32)

    constants: dict[str, npt.NDArray[Any]] = {
        "mean": np.full(3, 127.5, dtype=np.float32), "gain": np.full(3, 1 / 127.5, dtype=np.float32),
        "stem.weight": normal(8, 3, 3, 3, gain=0.4), "stem.bias": normal(8, gain=0.1),
        "mix.weight": normal(16, 8, 1, 1, gain=0.5), "mix.bias": normal(16, gain=0.1),
        "head.weight": normal(len(CLASSES), 16, gain=2.0), "head.bias": normal(len(CLASSES), gain=0.1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"], "centre"),
        helper.make_node("Mul", ["centred", "gain"], ["normalised"], "normalise"),
        helper.make_node("Transpose", ["normalised"], ["planar"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["planar", "stem.weight", "stem.bias"], ["stem"], "stem/Conv", kernel_shape=[3, 3],
            strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], group=1,
        ),
        helper.make_node("Relu", ["stem"], ["stem_relu"], "stem/Relu"),
        helper.make_node(
            "Conv", ["stem_relu", "mix.weight", "mix.bias"], ["mix"], "mix/Conv", kernel_shape=[1, 1],
            strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1,
        ),
        helper.make_node("Relu", ["mix"], ["mix_relu"], "mix/Relu"),
        helper.make_node("GlobalAveragePool", ["mix_relu"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["features"], "flatten", axis=1),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head/Gemm", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=-1),
    ]  # fmt: skip
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(CLASSES)])
        for name in ("logits", "probabilities")
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", _SIDE, _SIDE, 3])
    initializers = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "classifier", [image], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def quantized_classifier() -> onnx.ModelProto:
    """Return `float_classifier` with stored scales for its two convolutions, in QDQ form."""
    model = float_classifier()
    names = ["planar", "stem_relu", "mix_relu"]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    values = dict(zip(names, ReferenceEvaluator(probe).run(names, {"image": random_images(8)}), strict=True))
    activations = {}
    for name, array in values.items():
        low, high = min(float(array.min()), 0.0), float(array.max())
        scale = float(np.float32((high - low) / 255))
        activations[name] = QuantParams((scale,), (round(-low / scale),), "uint8", None)
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.name in ("stem.weight", "mix.weight"):
            largest = np.abs(numpy_helper.to_array(tensor)).max(axis=(1, 2, 3))
            weights[tensor.name] = along_axis((largest / 64).tolist(), axis=0)
    return apply_quantization(model, Quantization(("stem/Conv", "mix/Conv"), activations, weights))
