"""`quantize --precision`: half precision and integers found at run time, and which layers stay in floats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_photo
from onnx import numpy_helper
from safetensors.torch import load_file

from featcache.bundle.exporting import export
from featcache.compression import CompressResult, quantize
from featcache.compression.choosing import fewest_floats
from featcache.compression.layerwise import Calibrated
from featcache.errors import InputError
from featcache.extract.build import build_cache
from featcache.graph.halves import is_of_halves
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model
from featcache.model.merging import merge
from featcache.model.quantization import Quantization, along_axis
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


def make(place: Path, backbone: str) -> Path:
    """Return `place` with photos, their cache and a model of `backbone`."""
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(12):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=(180, 170))
    build_cache(place / "photos", place / "cache", backbone=backbone, weights="random:3", precision="fp32")
    train_head(place / "cache", head=LinearOptions(l2=0.1)).save(place / "head")
    merge(place / "head", place / "cache", out=place / "model")
    return place


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("convolutions"), "test_resnet")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("transformer"), "test_vit")


@pytest.fixture(scope="module")
def halved(convolutions: Path) -> CompressResult:
    return quantize(convolutions / "model", cache=convolutions / "cache", out=convolutions / "fp16", precision="fp16")


@pytest.fixture(scope="module")
def dynamic(transformer: Path) -> CompressResult:
    return quantize(
        transformer / "model", cache=transformer / "cache", out=transformer / "int8d", precision="int8-dynamic"
    )


def logits_of(graph: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": pixels})[0])


def pixels(place: Path, n: int = 4) -> np.ndarray:
    size = load_model(place / "model").preprocessing
    return np.random.default_rng(0).integers(0, 256, size=(n, size.height, size.width, 3), dtype=np.uint8)


def test_half_precision_halves_the_bytes_and_keeps_the_answers(
    convolutions: Path, halved: CompressResult, tmp_path: Path
) -> None:
    """The file has half the bytes, logits move by less than 1 % of their spread, no image changes its class."""
    assert halved.method == "fp16"
    assert halved.bytes_after < 0.55 * halved.bytes_before
    assert (halved.gained, halved.lost, halved.refit_kept) == (0, 0, False)
    exact = write_onnx(load_model(convolutions / "model"), tmp_path / "float.onnx")
    rough = write_onnx(load_model(convolutions / "fp16"), tmp_path / "fp16.onnx")
    wanted, got = logits_of(exact, pixels(convolutions)), logits_of(rough, pixels(convolutions))
    assert np.abs(got - wanted).max() <= 1e-2 * np.sqrt(np.mean(wanted**2))


def test_a_model_in_half_precision_is_stored_so_and_loaded_again(convolutions: Path, halved: CompressResult) -> None:
    """Its own file holds float16 too, and what is loaded computes in float32 with these very numbers."""
    stored = load_file(convolutions / "fp16" / "weights.safetensors")
    wide = [tensor for tensor in stored.values() if tensor.ndim > 1]
    assert {tensor.dtype for tensor in wide} == {torch.float16}
    model = load_model(convolutions / "fp16")
    assert model.halves
    assert model.quantization is None
    state = model.backbone.state_dict()
    assert all(state[name.removeprefix("backbone.")].dtype == torch.float32 for name in stored if "backbone" in name)
    assert json.loads((convolutions / "fp16" / "model.json").read_text())["lineage"][-1]["precision"] == "fp16"


def test_formats_say_what_they_hold_of_half_precision(
    convolutions: Path, halved: CompressResult, tmp_path: Path
) -> None:
    """ONNX, OpenVINO and TensorRT hold float16, each within a float file's tolerance of torch, and say so."""
    report = export(convolutions / "fp16", out=tmp_path / "b", formats=["openvino", "tensorrt"])
    described = json.loads((tmp_path / "b" / "preprocess.json").read_text())["tensors"]
    for name, made in report.formats.items():
        assert described[name]["numbers"] == "weights float16, made float32 to compute with", name
        assert made.bytes < 0.65 * halved.bytes_before, name
        assert made.max_abs_diff is not None
        assert made.tolerance is not None
        assert made.max_abs_diff <= made.tolerance, name


def test_only_numbers_that_are_halves_are_stored_so() -> None:
    """Nothing is rounded when a graph is written: 0.1 is no half, 0.5 is; 1e5 is beyond them; few are not worth it."""
    full = np.ones((16, 16), dtype=np.float32)
    assert is_of_halves(full * 0.5)
    assert not is_of_halves(full * 0.1)
    assert not is_of_halves(full * 1e5)
    assert not is_of_halves(full[:2])
    assert not is_of_halves(full.reshape(-1))


def test_rows_rounded_at_run_time_do_not_depend_on_their_neighbours(
    transformer: Path, dynamic: CompressResult, tmp_path: Path
) -> None:
    """An image's logits are the same alone and beside others, but for the order in which floats are added."""
    graph = write_onnx(load_model(transformer / "int8d"), tmp_path / "d.onnx")
    images = pixels(transformer)
    images[1] = 0  # another range altogether
    together = logits_of(graph, images)
    alone = np.concatenate([logits_of(graph, images[i : i + 1]) for i in range(len(images))])
    assert np.abs(together - alone).max() <= 1e-5 * np.sqrt(np.mean(alone**2))


def test_a_transformer_s_products_are_integers_at_run_time(
    transformer: Path, dynamic: CompressResult, tmp_path: Path
) -> None:
    """Every product with weights is a MatMulInteger, within 5 % of the float logits' spread, in fewer bytes."""
    assert dynamic.method == "int8-dynamic"
    assert dynamic.bytes_after < 0.6 * dynamic.bytes_before
    model = load_model(transformer / "int8d")
    assert model.quantization is not None
    graph = onnx.load(write_onnx(model, tmp_path / "d.onnx"))
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMulInteger") == len(model.quantization.dynamic) > 0
    largest = max(int(np.abs(numpy_helper.to_array(t)).max()) for t in graph.graph.initializer if t.data_type == 3)
    assert largest == 64  # exact sums on every processor
    old = load_model(transformer / "model").with_head(model.fitted_head)
    exact = write_onnx(old, tmp_path / "float.onnx")
    wanted, got = logits_of(exact, pixels(transformer)), logits_of(tmp_path / "d.onnx", pixels(transformer))
    assert np.sqrt(np.mean((got - wanted) ** 2)) <= 0.05 * wanted.std()


def test_formats_say_what_they_do_with_rows(transformer: Path, dynamic: CompressResult, tmp_path: Path) -> None:
    """ONNX rounds them at run time; OpenVINO and TensorRT hold integer weights and round no row, and say so."""
    export(transformer / "int8d", out=tmp_path / "b", formats=["openvino", "tensorrt"])
    described = json.loads((tmp_path / "b" / "preprocess.json").read_text())["tensors"]
    assert "found at run time" in described["onnx"]["numbers"]
    assert "activations are not rounded" in described["openvino"]["numbers"]
    assert "activations are not rounded" in described["tensorrt"]["numbers"]
    kinds = {node.op_type for node in onnx.load(tmp_path / "b" / "model.onnx").graph.node}
    assert "MatMulInteger" in kinds


def test_what_cannot_go_together_is_refused_in_one_line(convolutions: Path, tmp_path: Path) -> None:
    """A convolutional network has no rows to round; halves have no scales to train and no layers to choose."""
    for options, words in (
        ({"precision": "int8-dynamic"}, "network of linear layers"),
        ({"precision": "fp16", "method": "qat"}, "--method must be left out with --precision fp16"),
        ({"precision": "int8-dynamic", "max_error": 0.1}, "--max-error must be left out"),
        ({"precision": "fp16", "processor": "vnni"}, "--processor must be 'any'"),
        ({"precision": "int3"}, "--precision must be"),
        ({"max_error": 0.0}, "--max-error must be above 0"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            quantize(convolutions / "model", cache=convolutions / "cache", out=tmp_path / "x", **options)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_quant_json_of_rows_has_the_new_version_and_others_the_old(transformer: Path, dynamic: CompressResult) -> None:
    """A reader that knows no `dynamic` refuses it by version; what has none stays as it can read it."""
    document = json.loads((transformer / "int8d" / "quant.json").read_text())
    assert document["version"] == 2
    assert Quantization.from_json(document).to_json() == document
    plain = Quantization(("conv",), weights={"w": along_axis([0.5], axis=0)}).to_json()
    assert plain["version"] == 1
    assert "dynamic" not in plain
    with pytest.raises(InputError, match="once"):
        Quantization(("a",), dynamic=("a",))


@pytest.mark.long
def test_the_worst_layers_are_named_and_stay_in_floats_until_the_budget_holds(convolutions: Path) -> None:
    """With nine tenths of the plain error as budget, some of the worst stay in floats, and the error is within it."""
    place = convolutions
    plain = quantize(place / "model", cache=place / "cache", out=place / "all", float_share=0, calibration_images=6)
    assert plain.feature_error is not None
    assert plain.float_layers == plain.worst_layers == ()  # nobody asked: a run for each layer takes its time
    budget = 0.9 * plain.feature_error
    found = quantize(place / "model", cache=place / "cache", out=place / "some", max_error=budget, calibration_images=6)
    assert found.feature_error is not None
    assert found.feature_error <= budget
    assert found.float_layers
    errors = [entry["error"] for entry in found.worst_layers]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0
    assert found.float_layers[0] == found.worst_layers[0]["layer"]
    assert not found.worst_layers[0]["integers"]
    quantization = load_model(place / "some").quantization
    assert quantization is not None
    assert not set(found.float_layers) & set(quantization.nodes)


def calibrated(error: float) -> Calibrated:
    return Calibrated({}, Quantization(()), error)


def test_as_few_layers_as_do_stay_in_floats() -> None:
    """Six layers of equal work whose errors are 1, 2, 3 ... and add up: the three worst go for a budget of 6."""
    errors = {f"layer{i}": float(i) for i in range(1, 8)}
    macs = dict.fromkeys(errors, 10)
    asked: list[tuple[str, ...]] = []

    def walk(floats: object) -> Calibrated:
        asked.append(tuple(floats))  # type: ignore[arg-type]
        return calibrated(sum(error for name, error in errors.items() if name not in asked[-1]))

    assert fewest_floats(walk, errors, macs, max_error=10).error == 10
    assert asked[-1] in [("layer7", "layer6"), ("layer7", "layer6", "layer5")]
    assert ("layer7", "layer6", "layer5") in asked
    with pytest.raises(InputError, match=r"half of the multiplications.*off by 10.*3 worst layers"):
        fewest_floats(walk, errors, macs, max_error=5)
