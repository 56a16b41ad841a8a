from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_photo
from onnx import TensorProto, helper, numpy_helper

from featcache.cache import open_cache
from featcache.compression.choosing import integer_nodes
from featcache.compression.fake_quantization import FakeQuantized
from featcache.compression.folded import FoldedModel, fold_model, with_integers
from featcache.compression.integers import Grid, Integers, Sum
from featcache.compression.layerwise import Calibrated, calibrate
from featcache.compression.learned_scales import ActivationRounding, WeightRounding
from featcache.compression.qat import fake_quantized, start_within, train_quantized, training_settings
from featcache.compression.quantization import quantize
from featcache.compression.refitting import open_source
from featcache.compression.rounding import LIMIT
from featcache.errors import BackboneError, InputError
from featcache.extract.build import build_cache
from featcache.graph.write import write_onnx
from featcache.images.batches import first_decoded
from featcache.model.directory import load_model
from featcache.model.merging import merge
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions

NAMES = ("cat", "dog")
# the first has sums of integers, the second hard swish and squeeze-and-excitation, which lie between integers
BACKBONES = ("test_resnet", "mobilenetv3_small_050")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("qat")
    for hue, name in enumerate(NAMES):
        for i in range(24):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=(90, 80))
    return place


def made(place: Path, backbone: str) -> tuple[Path, Path]:
    """Return a model and the cache it was made from."""
    model, cache = place / f"{backbone}.model", place / f"{backbone}.cache"
    if not model.exists():
        build_cache(place / "photos", cache, backbone=backbone, weights="random:3", precision="fp32")
        train_head(cache, head=LinearOptions(l2=0.1)).save(place / f"{backbone}.head")
        merge(place / f"{backbone}.head", cache, out=model)
    return model, cache


@functools.cache
def calibrated(place: Path, backbone: str) -> tuple[FoldedModel, Calibrated, npt.NDArray[np.uint8]]:
    """Return a folded model, its integers, and pixels that these did not see."""
    model, cache = made(place, backbone)
    folded = fold_model(load_model(model))
    with open_cache(cache) as opened:
        sources = opened.samples().sources(range(len(opened.samples())))
    pixels = first_decoded(sources, folded.model.preprocessing, count=24).pixels
    nodes = integer_nodes(folded.graph, float_share=0)
    return (
        folded,
        calibrate(folded.graph, [pixels[:8]], nodes=nodes, adjustable=folded.adjustable, limit=LIMIT),
        pixels[8:],
    )


def deployed(
    folded: FoldedModel, found: Calibrated, pixels: npt.NDArray[np.uint8], folder: Path
) -> npt.NDArray[np.float32]:
    """Return the features that ONNX Runtime computes with the exported graph."""
    graph = write_onnx(with_integers(folded, found), folder / "int8.onnx", outputs=("features",))
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    features: npt.NDArray[np.float32] = session.run(["features"], {"image": pixels})[0]
    return features


# --- one rounding ---


def test_the_rounding_is_that_of_onnx_runtime() -> None:
    params = QuantParams((0.037,), (93,), "uint8", None)
    x = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)) * 4
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3000]) for name in "xy"]
    constants = [
        numpy_helper.from_array(np.float32(params.scale[0]), "s"),
        numpy_helper.from_array(np.uint8(params.zero_point[0]), "z"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x.numpy()})[0]
    assert np.array_equal(ActivationRounding(params).rounded(x).detach().numpy(), expected)


def test_gradients_are_those_of_the_paper() -> None:
    """Equation 3 of Esser et al. 2020, times 1/√(values · largest integer): inside, above and below the range."""
    rounding = ActivationRounding(QuantParams((0.5,), (10,), "uint8", None))
    x = torch.tensor([[0.6, 200.0, -7.0]], requires_grad=True)
    rounding.rounded(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 0.0, 0.0]]
    expected = ((1 - 1.2) + 245 - 10) / np.sqrt(3 * 245)
    assert rounding.factor.grad is not None
    assert rounding.factor.grad.item() == pytest.approx(0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_tensors_gradients_are_those_of_the_plain_formula(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 5, 7, 6, generator=generator) * 4).to(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 5, 7, 6, generator=generator)
    rounding = ActivationRounding(QuantParams((0.031,), (120,), "uint8", None))
    (rounding.rounded(x) * weights).sum().backward()
    with torch.no_grad():
        steps = x / rounding.calibrated
        inside = (steps > -120) & (steps < 135)
        of_step = torch.where(inside, steps.round() - steps, steps.round().clamp(-120, 135))
        expected = 0.031 * (weights * of_step).sum() / np.sqrt(5 * 7 * 6 * 135)
    assert x.grad is not None and torch.equal(x.grad, weights * inside)
    assert rounding.factor.grad is not None
    assert rounding.factor.grad.item() == pytest.approx(float(expected), rel=1e-3)


def test_each_channel_of_a_weight_has_a_step_of_its_own() -> None:
    weight = torch.tensor([[0.12, -0.4], [1.0, 3.0]], requires_grad=True)
    rounding = WeightRounding(along_axis([0.1, 0.5], axis=0), rank=2, limit=LIMIT)
    assert torch.allclose(rounding.rounded(weight), torch.tensor([[0.1, -0.4], [1.0, 3.0]]))
    rounding.rounded(weight).sum().backward()
    assert rounding.factor.grad is not None
    expected = 0.1 * ((1 - 1.2) + 0) / np.sqrt(2 * 64)
    assert rounding.factor.grad.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_a_step_stays_where_it_can_stand_in_for_the_clip() -> None:
    scale = float(np.nextafter(np.float32(6 / 255), np.float32(0)))
    rounding = ActivationRounding(QuantParams((scale,), (0,), "uint8", None), upper=6.0)
    with torch.no_grad():
        rounding.factor.fill_(1.5)
    assert 255 * rounding.params().scale[0] <= 6
    rounding.rounded(torch.full((1, 4), 9.0)).sum().backward()
    assert rounding.factor.grad is not None and rounding.factor.grad.item() > 0, "it can come back"


def test_training_begins_with_the_calibrated_integers() -> None:
    generator = np.random.default_rng(0)
    params = along_axis([0.1, 0.03], axis=0)
    steps = np.array(params.scale, np.float32)[:, None]
    exact = generator.normal(size=(2, 50)).astype(np.float32) * 0.5
    rounded = (np.rint(exact / steps) + generator.integers(-1, 2, size=exact.shape)).astype(np.float32) * steps
    start = start_within(exact, rounded, params)
    assert np.array_equal(np.rint(start / steps), np.rint(rounded / steps))
    assert np.all(np.abs(start - exact) <= np.abs(rounded - exact) + 1e-6)
    same = np.abs(exact - rounded) < 0.48 * steps
    assert np.array_equal(start[same], exact[same]) and same.any() and not same.all()


def test_a_sum_of_integers_is_onnx_runtimes() -> None:
    """All 65536 pairs of bytes: its kernel adds in a certain order, and float32 tells orders apart."""
    generator = np.random.default_rng(0)
    first, second = (array.reshape(1, 16, 64, 64) for array in np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2))
    for _ in range(5):
        scales = [float(value) for value in generator.uniform(0.01, 0.1, 2).astype(np.float32)]
        scales.append(float(np.float32(sum(scales) * generator.uniform(0.6, 1))))
        zeros = [int(zero) for zero in generator.integers(60, 190, 3)]
        expected = _add(first, second, scales, zeros)
        grids = [Grid(torch.tensor(s), z, -z, 255 - z) for s, z in zip(scales, zeros, strict=True)]
        parts = [
            Integers(torch.from_numpy(values.astype(np.float32)) - grid.zero, grid)
            for values, grid in zip((first, second), grids, strict=False)
        ]
        found = Sum(*parts).rounded(grids[2])
        # at most where processors without AVX2 add in another order
        assert np.mean(found.steps.numpy() + zeros[2] != expected) < 1e-4


def _add(
    first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8], scales: list[float], zeros: list[int]
) -> npt.NDArray[np.uint8]:
    constants = [numpy_helper.from_array(np.float32(s), f"s{i}") for i, s in enumerate(scales)]
    constants += [numpy_helper.from_array(np.uint8(z), f"z{i}") for i, z in enumerate(zeros)]
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s0", "z0"], ["x"]),
        helper.make_node("DequantizeLinear", ["b", "s1", "z1"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "s2", "z2"], ["c"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, first.shape) for name in "abc"]
    graph = helper.make_graph(nodes, "add", ends[:2], ends[2:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    total: npt.NDArray[np.uint8] = session.run(None, {"a": first, "b": second})[0]
    return total


# --- the network ---


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_computes_what_is_deployed(photos: Path, tmp_path: Path, backbone: str) -> None:
    """Not nearly: a last bit decides a rounding, and the layers after it multiply that."""
    folded, found, pixels = calibrated(photos, backbone)
    network = fake_quantized(folded, found, limit=LIMIT)
    with torch.no_grad():
        features = network(folded.model.normalise(torch.from_numpy(pixels))).numpy()
    expected = deployed(folded, found, pixels, tmp_path)
    assert np.mean(np.abs(features - expected).max(axis=1) < 1e-4 * np.abs(expected).max()) >= 0.9
    # with gradients it computes in floats: near, as far as roundings that fell otherwise let it
    rough = network(folded.model.normalise(torch.from_numpy(pixels))).detach().numpy()
    with torch.no_grad():
        exact = folded.model.features(torch.from_numpy(pixels)).numpy()
    assert 0 < np.square(rough - expected).mean() < 2 * np.square(exact - expected).mean()


def test_what_was_not_trained_is_what_was_calibrated(photos: Path) -> None:
    folded, found, _ = calibrated(photos, "test_resnet")
    learned = fake_quantized(folded, found, limit=LIMIT).learned()
    assert learned.quantization == found.quantization
    for name, values in found.values.items():
        np.testing.assert_array_equal(learned.values[name], values, err_msg=name)


def test_what_is_trained_is_nearer_and_exported_with_its_scales(photos: Path, tmp_path: Path) -> None:
    """Steps that clip half of what they round are learned anew; the file has just these, and computes with them."""
    folded, found, pixels = calibrated(photos, "test_resnet")
    network = fake_quantized(folded, found, limit=LIMIT)
    images = folded.model.normalise(torch.from_numpy(pixels))
    steps = [parameter for name, parameter in network.named_parameters() if name.endswith(".factor")]
    with torch.no_grad():
        for step in steps:
            step.fill_(0.5)
        exact = folded.model.features(torch.from_numpy(pixels))
        before = float((network(images) - exact).square().mean())
    optimizer = torch.optim.Adam([{"params": steps, "lr": 0.05}, {"params": _values(network), "lr": 1e-6}])
    for _ in range(8):
        optimizer.zero_grad()
        (network(images) - exact).square().mean().div(exact.var()).backward()
        optimizer.step()
    with torch.no_grad():
        features = network(images)
    assert float((features - exact).square().mean()) < 0.3 * before
    learned = network.learned()
    assert learned.quantization.nodes == found.quantization.nodes
    for part in ("activations", "weights"):
        were, are = getattr(found.quantization, part), getattr(learned.quantization, part)
        assert {name: params.zero_point for name, params in are.items()} == {n: p.zero_point for n, p in were.items()}
        assert sum(are[name].scale != were[name].scale for name in were) > 0.8 * len(were)
    expected = deployed(folded, learned, pixels, tmp_path)
    assert np.mean(np.abs(features.numpy() - expected).max(axis=1) < 1e-4 * np.abs(expected).max()) >= 0.9


def _values(network: FakeQuantized) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in network.named_parameters() if name.startswith("value_")]


def test_a_bias_fits_32_bits_whatever_was_learned(photos: Path) -> None:
    folded, found, _ = calibrated(photos, "test_resnet")
    network = fake_quantized(folded, found, limit=LIMIT)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("weights."):
                parameter.fill_(1e-12)
    learned = network.learned()
    graph = onnx.load_from_string(folded.graph.SerializeToString())
    for node in graph.graph.node:
        if node.op_type == "Conv" and node.name in learned.quantization.nodes:
            source, weight, bias = node.input
            scales = np.array(learned.quantization.weights[weight].scale)
            largest = np.abs(learned.values[bias]) / (scales * learned.quantization.activations[source].scale[0])
            assert largest.max() < 2**31


def test_operations_that_torch_cannot_train_are_refused() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("image", "features"))
    graph = helper.make_graph([helper.make_node("Mish", ["image"], ["features"], "mish")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(BackboneError, match="Mish"):
        FakeQuantized(model, Quantization(()), values={}, trainable=frozenset(), limit=LIMIT)


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.slow
def test_what_is_deployed_chooses_the_classes_that_torch_said(tinyimagenet: Path, tmp_path: Path) -> None:
    """On 2,000 photos of 200 classes, after training: hard ones, on which a float network's rounding decides many."""
    for split, count in (("train", 5), ("val", 10)):
        for source in (tinyimagenet / split).iterdir():
            (tmp_path / "photos" / split / source.name).mkdir(parents=True)
            for photo in sorted(source.iterdir())[:count]:
                (tmp_path / "photos" / split / source.name / photo.name).symlink_to(photo)
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone="featcache_nano", precision="fp32")
    train_head(tmp_path / "cache", head=LinearOptions(l2=0.1)).save(tmp_path / "head")
    merge(tmp_path / "head", tmp_path / "cache", out=tmp_path / "model", golden="none")
    folded = fold_model(load_model(tmp_path / "model"))
    with open_cache(tmp_path / "cache") as cache:
        samples = cache.samples()

        def pixels_of(split: str, count: int) -> npt.NDArray[np.uint8]:
            chosen = cache.select(split=split).indices
            return first_decoded(samples.sources(chosen.tolist()), folded.model.preprocessing, count=count).pixels

        seen, fresh = pixels_of("train", 256), pixels_of("val", 2000)
    nodes = integer_nodes(folded.graph, float_share=0)
    found = calibrate(folded.graph, [seen], nodes=nodes, adjustable=folded.adjustable, limit=LIMIT)
    network = fake_quantized(folded, found, limit=LIMIT)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for start in range(0, len(seen), 32):
        images = torch.from_numpy(seen[start : start + 32])
        with torch.no_grad():
            exact = folded.model.features(images)
        optimizer.zero_grad()
        (network(folded.model.normalise(images)) - exact).square().mean().backward()
        optimizer.step()
    head = folded.model.fitted_head
    with torch.no_grad():
        parts = [network(folded.model.normalise(torch.from_numpy(part))).numpy() for part in np.split(fresh, 20)]
    said = head.predict(np.concatenate(parts))
    chosen = head.predict(deployed(folded, network.learned(), fresh, tmp_path))
    assert len(chosen) == 2000
    assert np.mean(said == chosen) >= 0.99


# --- the verb ---


def test_quantize_trains_and_says_so(photos: Path, tmp_path: Path) -> None:
    model, cache = made(photos, "test_resnet")
    result = quantize(model, cache=cache, out=tmp_path / "qat", method="qat", recover=0.03)
    assert result.settings["method"] == "qat"
    training = result.settings["training"]
    assert training["val_loss_after"] <= training["val_loss_before"]
    json.dumps(result.to_json(), allow_nan=False)
    written = load_model(tmp_path / "qat")
    assert [step["verb"] for step in written.lineage] == ["merge", "quantize"]
    assert written.lineage[-1]["training"] == json.loads(json.dumps(training))
    assert not (tmp_path / "qat.work").exists()
    graph = onnx.load(str(write_onnx(written, tmp_path / "int8.onnx")))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert written.quantization is not None
    for name, params in written.quantization.activations.items():
        assert stored[f"{name}/scale"] == np.float32(params.scale[0])
        assert stored[f"{name}/zero_point"] == params.zero_point[0]


def test_training_that_does_not_help_leaves_the_calibrated_integers(photos: Path, tmp_path: Path) -> None:
    folded, found, _ = calibrated(photos, "test_resnet")
    model, cache = made(photos, "test_resnet")
    wild = dataclasses.replace(training_settings(0.02), learning_rate=10.0, average=0.0)
    with open_cache(cache) as opened:
        trained, recovery = train_quantized(
            folded, found, open_source(model, opened), wild, limit=LIMIT, work=tmp_path / "work"
        )
    assert not recovery.kept
    assert trained is found


def test_what_does_not_go_together_is_refused(photos: Path, tmp_path: Path) -> None:
    model, cache = made(photos, "test_resnet")
    with pytest.raises(InputError, match="--method qat trains"):
        quantize(model, cache=cache, out=tmp_path / "x", recover=1.0)
    with pytest.raises(InputError, match="--method ptq trains nothing"):
        quantize(model, cache=cache, out=tmp_path / "x", method="qat", recover="off")
    with pytest.raises(InputError, match="minutes"):
        quantize(model, cache=cache, out=tmp_path / "x", method="qat", recover=-1.0)
    with pytest.raises(InputError, match="--method must be 'ptq' or 'qat'"):
        quantize(model, cache=cache, out=tmp_path / "x", method="int4")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
