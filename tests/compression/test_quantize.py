from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_photo
from onnx import helper, numpy_helper

from featcache.cache import open_cache
from featcache.compression import CompressResult, apply_quantization, quantization, quantize, refitting, shipping
from featcache.compression.choosing import integer_nodes
from featcache.compression.folded import fold_model
from featcache.compression.layerwise import calibrate, usual_error
from featcache.compression.measurement import graph_macs, integer_share
from featcache.compression.quantization import calibration_inputs, integer_head, quantized_model
from featcache.compression.ranges import affine_qparams, fake_quantize, power_range
from featcache.compression.refitting import SplitRows, open_source
from featcache.compression.rounding import FULL_LIMIT, LIMIT, MomentsSum, channel_scales, round_jointly, round_nearest
from featcache.errors import ExistsError, FormatError, InputError, MissingError
from featcache.extract.build import build_cache
from featcache.graph.cost import node_macs
from featcache.graph.qdq import quantize_weight
from featcache.graph.write import write_onnx
from featcache.heads import LinearHead
from featcache.model.directory import load_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel
from featcache.model.merging import merge
from featcache.model.quantization import Quantization, QuantParams, along_axis
from featcache.model.reference import load_pixels
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions

BACKBONE = "test_resnet"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, their cache, a model, and its INT8 form."""
    place = tmp_path_factory.mktemp("quantize")
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(16):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=(180, 170))
    build_cache(place / "photos", place / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    train_head(place / "cache", head=LinearOptions(l2=0.1)).save(place / "head")
    merge(place / "head", place / "cache", out=place / "model")
    return place


@pytest.fixture(scope="module")
def result(place: Path) -> CompressResult:
    return quantize(place / "model", cache=place / "cache", out=place / "int8")


def logits_of(graph: Path, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": pixels})[0])


def test_calibration_reads_unchanged_images_only(place: Path, tmp_path: Path) -> None:
    """A photo that was replaced since the build is none that the model was trained on."""
    shutil.copytree(place / "photos", tmp_path / "photos")
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    with open_cache(tmp_path / "cache") as cache:
        source = open_source(place / "model", cache, dataset=None)
        [before] = calibration_inputs(source, 100)
        index = int(cache.select(split="train").indices[0])
        write_photo(Path(cache.samples().listing.absolute(index)), seed=999, size=(180, 170))
        [after] = calibration_inputs(source, 100)
    assert len(after) == len(before) - 1
    assert {image.tobytes() for image in after} < {image.tobytes() for image in before}


def test_most_convolutions_run_as_integer_kernels(place: Path, result: CompressResult, tmp_path: Path) -> None:
    graph = write_onnx(load_model(place / "int8"), tmp_path / "int8.onnx")
    integer, convolutions = integer_share(str(graph))
    assert convolutions > 0 and integer >= 0.8 * convolutions
    assert (integer, convolutions) == (result.integer_convolutions, result.convolutions)
    float_graph = write_onnx(load_model(place / "model"), tmp_path / "float.onnx")
    assert integer_share(str(float_graph))[0] == 0


def test_the_model_alone_makes_the_same_graph_again(place: Path, result: CompressResult, tmp_path: Path) -> None:
    one = write_onnx(load_model(place / "int8"), tmp_path / "one.onnx")
    shutil.copytree(place / "int8", tmp_path / "copy")
    two = write_onnx(load_model(tmp_path / "copy"), tmp_path / "two.onnx")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size == result.bytes_after < 0.4 * result.bytes_before


def test_scales_are_stored_as_promised(place: Path, result: CompressResult) -> None:
    stored = json.loads((place / "int8" / "quant.json").read_text())
    for tensors, per_channel in ((stored["activations"], False), (stored["weights"], True)):
        assert tensors
        for entry in tensors.values():
            assert set(entry) == {"scale", "zero_point", "signed", "axis"}
            assert entry["signed"] is per_channel
            assert isinstance(entry["scale"], list) is per_channel
    model = load_model(place / "int8")
    for name, tensor in model.state_dict().items():
        if name in stored["weights"]:
            integers = quantize_weight(tensor.numpy(), QuantParams.from_json(stored["weights"][name]))
            back = integers * np.array(stored["weights"][name]["scale"], np.float32).reshape(
                -1, *[1] * (tensor.ndim - 1)
            )
            np.testing.assert_allclose(back, tensor.numpy(), rtol=1e-6, atol=1e-9)
            # two products of an unsigned byte and a weight fit 16 bits, where processors without VNNI add them
            assert 2 * 255 * int(np.abs(integers.astype(np.int32)).max()) <= np.iinfo(np.int16).max


def test_integer_logits_stay_near_the_float_ones(place: Path, result: CompressResult, tmp_path: Path) -> None:
    float_model = load_model(place / "model")
    images = Golden.load(place / "model" / "golden").images
    pixels = load_pixels(images, float_model.preprocessing)
    rough = quantized_model(float_model, [pixels])
    exact_logits = logits_of(write_onnx(float_model, tmp_path / "f.onnx"), pixels)
    rough_logits = logits_of(write_onnx(rough, tmp_path / "q.onnx"), pixels)
    error = np.square(exact_logits - rough_logits).mean() / exact_logits.var()
    assert error < 0.02


def test_result_has_the_promised_figures(place: Path, result: CompressResult) -> None:
    values = result.to_json()
    keys = "parameters macs sparsity bytes_before bytes_after split n accuracy_float accuracy_before_refit"
    assert set(values) >= {*keys.split(), "accuracy_after_refit", "latency_ms_before", "latency_ms_after"}
    json.dumps(values, allow_nan=False)
    assert result.split == "test" and result.n > 0
    assert 0 <= result.accuracy_after_refit <= 1
    assert result.latency_ms_before > 0 and result.latency_ms_after > 0
    assert result.random_weights
    assert result.accuracy_float - result.accuracy_after_refit == pytest.approx(
        (result.lost - result.gained) / result.n
    )


def test_the_refitted_head_ships_rounded_per_class(place: Path, result: CompressResult, tmp_path: Path) -> None:
    stored = json.loads((place / "int8" / "quant.json").read_text())["weights"]["head.weight"]
    head = load_model(place / "int8").fitted_head
    steps = head.arrays()["weight"] / np.array(stored["scale"], np.float32)[:, None]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert result.head_precision == "int8"
    kept = quantize(place / "model", cache=place / "cache", out=tmp_path / "float", head_precision="float")
    assert kept.head_precision == "float"
    assert "head.weight" not in json.loads((tmp_path / "float" / "quant.json").read_text())["weights"]


def test_a_head_is_rounded_for_its_features_not_weight_by_weight() -> None:
    """Features with a mean far larger than their spread, as untrained networks make them."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(400, 6))
    features = (20 + 5 * generator.random(64) + hidden @ generator.normal(size=(6, 64))).astype(np.float32)
    weight = generator.normal(size=(3, 64)).astype(np.float32)
    head = LinearHead(classes=("a", "b", "c"), fingerprint="f", weight=weight, bias=-weight @ features.mean(axis=0))
    rows = {"train": SplitRows(features, np.zeros(400, np.int64))}
    rounded, stored = integer_head(head, Quantization(()), rows)
    scale = np.array(stored.weights["head.weight"].scale, np.float32)[:, None]
    steps = rounded.arrays()["weight"] / scale
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    exact = head.predict_logits(features)
    plain = np.rint(weight / scale) * scale
    nearest = features @ plain.T + head.bias

    def error(logits: np.ndarray) -> float:
        return float(np.sqrt(np.square(logits - exact).mean()))

    assert error(rounded.predict_logits(features)) < 0.3 * error(nearest)


def test_recipe_and_lineage_say_what_was_done(place: Path, result: CompressResult) -> None:
    model = load_model(place / "int8")
    assert model.recipe.model_digest is not None and model.recipe.precision == "int8"
    assert [step["verb"] for step in model.lineage] == ["merge", "quantize"]
    assert model.recipe.fingerprint == model.fitted_head.fingerprint
    golden = Golden.load(place / "int8" / "golden")
    assert golden.images == Golden.load(place / "model" / "golden").images
    assert not np.array_equal(golden.logits, Golden.load(place / "model" / "golden").logits)


def test_what_cannot_be_quantized_is_refused(place: Path, result: CompressResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantized already"):
        quantize(place / "int8", cache=place / "cache", out=tmp_path / "again")
    with pytest.raises(ExistsError):
        quantize(place / "model", cache=place / "cache", out=place / "int8")
    with pytest.raises(InputError, match="head_precision"):
        quantize(place / "model", cache=place / "cache", out=tmp_path / "x", head_precision="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="float_share"):
        quantize(place / "model", cache=place / "cache", out=tmp_path / "x", float_share=2)
    with pytest.raises(InputError, match="processor must be 'any', 'vnni' or 'arm', got 'z80'"):
        quantize(place / "model", cache=place / "cache", out=tmp_path / "x", processor="z80")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_a_model_for_one_kind_of_processor_has_all_levels(place: Path) -> None:
    """±127 where products are added in 32 bits; ±64, and the bytes as ever, for any."""
    float_model = load_model(place / "model")
    pixels = load_pixels(Golden.load(place / "model" / "golden").images[:4], float_model.preprocessing)

    def largest(model: MergedModel) -> int:
        assert model.quantization is not None
        state = model.state_dict()
        return max(
            int(np.abs(quantize_weight(state[name].numpy(), params).astype(np.int32)).max())
            for name, params in model.quantization.weights.items()
        )

    assert largest(quantized_model(float_model, [pixels])) == LIMIT
    assert largest(quantized_model(float_model, [pixels], processor="vnni")) == FULL_LIMIT
    assert largest(quantized_model(float_model, [pixels], processor="arm")) == FULL_LIMIT


def test_a_refit_that_val_says_is_worse_is_not_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = refitting.refit_head

    def mirrored(*arguments: Any, **options: Any) -> Any:
        """A head that is wrong wherever the fitted one is right."""
        result = fit(*arguments, **options)
        head = result.head
        return dataclasses.replace(result, head=dataclasses.replace(head, weight=-head.weight, bias=-head.bias))

    monkeypatch.setattr(refitting, "refit_head", mirrored)
    monkeypatch.setattr(refitting, "reason_to_drop", lambda *_: "it was turned round")
    result = quantize(place / "model", cache=place / "cache", out=tmp_path / "kept", head_precision="float")
    assert not result.refit_kept and not result.to_json()["refit_kept"]
    assert any("the refitted head is not kept, the old one is: it was turned round" in note for note in result.notes)
    model, old = load_model(tmp_path / "kept"), load_model(place / "model").fitted_head
    np.testing.assert_array_equal(model.fitted_head.arrays()["weight"], old.arrays()["weight"])
    assert model.lineage[-1]["refit_kept"] is False
    assert model.recipe.fingerprint == model.fitted_head.fingerprint
    assert result.accuracy_after_refit == result.accuracy_before_refit


def test_of_two_walks_the_one_counts_that_the_head_answers_nearer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one whose features are nearer in the mean, which follows a few that hardly vary."""
    walks: list[Any] = []

    def noted(*arguments: Any, **options: Any) -> Any:
        found = calibrate(*arguments, **options)
        assert 0 < found.error < 0.1
        walks.append(dataclasses.replace(found, error=1e-6 / found.answers_error))  # the one counts against the other
        return walks[-1]

    monkeypatch.setattr(quantization, "calibrate", noted)
    float_model = load_model(place / "model")
    pixels = load_pixels(Golden.load(place / "model" / "golden").images[:4], float_model.preprocessing)
    model = quantized_model(float_model, [pixels])
    assert len(walks) == 2 and walks[0].quantization != walks[1].quantization
    chosen, other = sorted(walks, key=lambda walk: walk.answers_error)
    assert model.quantization == chosen.quantization
    assert chosen.error > other.error and chosen.answers_error < other.answers_error


def test_what_a_head_answers_is_compared_as_its_variance(place: Path) -> None:
    folded = fold_model(load_model(place / "model"))
    pixels = load_pixels(Golden.load(place / "model" / "golden").images[:4], folded.model.preprocessing)
    nodes = integer_nodes(folded.graph, float_share=0.1)
    asked: list[np.ndarray] = []

    def answers(features: np.ndarray) -> np.ndarray:
        asked.append(features)
        return features[:, :3]

    found = calibrate(folded.graph, [pixels], nodes=nodes, adjustable=folded.adjustable, answers=answers)
    exact, rough = (features[:, :3] for features in asked)
    assert found.answers_error == pytest.approx(np.square(rough - exact).mean() / exact.var(axis=0).mean(), rel=1e-5)


def test_integers_that_are_slower_here_are_said_to_be() -> None:
    assert shipping.speed_notes(2.0, 1.0, precision="int8", processor="any") == []
    (note,) = shipping.speed_notes(0.86, 1.08, precision="int8", processor="any")
    assert note.startswith("INT8 is slower here: 1.08 ms against 0.86 ms in floats")


def test_a_file_for_vnni_says_so_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "processor_has_int8", lambda: False)
    (note,) = shipping.speed_notes(2.0, 1.0, precision="int8", processor="vnni")
    assert "sums saturate here" in note
    assert shipping.speed_notes(2.0, 1.0, precision="int8", processor="any") == []


def test_a_cache_of_another_recipe_is_refused(place: Path, tmp_path: Path) -> None:
    build_cache(place / "photos", tmp_path / "cache", backbone=BACKBONE, weights="random:4", precision="fp32")
    with pytest.raises(InputError, match="merged from"):
        quantize(place / "model", cache=tmp_path / "cache", out=tmp_path / "x")


def test_missing_photos_are_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    build_cache(tmp_path / "photos", tmp_path / "cache", backbone=BACKBONE, weights="random:3", precision="fp32")
    train_head(tmp_path / "cache", head=LinearOptions(l2=0.1)).save(tmp_path / "head")
    merge(tmp_path / "head", tmp_path / "cache", out=tmp_path / "model", golden="none")
    (tmp_path / "photos" / "cat" / "03.jpg").unlink()
    with pytest.raises(MissingError, match=r"03\.jpg"):
        quantize(tmp_path / "model", cache=tmp_path / "cache", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- parts ---


def float_graph(place: Path, folder: Path) -> onnx.ModelProto:
    return onnx.load(str(write_onnx(load_model(place / "model"), folder / "g.onnx", outputs=("features",))))


def test_unknown_names_are_refused(place: Path, result: CompressResult, tmp_path: Path) -> None:
    graph = float_graph(place, tmp_path)
    with pytest.raises(FormatError, match="nowhere"):
        apply_quantization(graph, Quantization((), {}, {"nowhere": along_axis([1.0], axis=0)}))


def test_first_convolutions_stay_in_floats_within_their_share(place: Path, tmp_path: Path) -> None:
    graph = float_graph(place, tmp_path)
    macs = node_macs(graph)
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    assert set(convolutions) <= set(integer_nodes(graph, float_share=0))
    some = integer_nodes(graph, float_share=0.5)
    left = [name for name in convolutions if name not in some]
    assert left == convolutions[: len(left)]
    assert sum(macs[name] for name in left) <= 0.5 * sum(macs.values())


def test_macs_of_a_known_network(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w")
    x = helper.make_tensor_value_info("image", 1, ["N", 3, 10, 10])
    y = helper.make_tensor_value_info("y", 1, ["N", 8, 8, 8])
    node = helper.make_node("Conv", ["image", "w"], ["y"], "conv")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.save(model, str(tmp_path / "c.onnx"))
    assert graph_macs(tmp_path / "c.onnx") == 8 * 8 * 8 * 3 * 3 * 3


def test_joint_rounding_beats_nearest_on_the_inputs_it_saw() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(24, 24, generator=generator)
    inputs = mixing @ torch.randn(24, 4000, generator=generator)
    weight = torch.randn(6, 24, generator=generator)
    scales = channel_scales(weight) * 16  # coarse steps, so that rounding matters
    moments = MomentsSum()
    moments.add(inputs[None, :, :2000])
    moments.add(inputs[None, :, 2000:])
    joint, nearest = round_jointly(weight, scales, moments.result()), round_nearest(weight, scales)

    def error(rounded: torch.Tensor) -> float:
        difference = (rounded - weight) @ inputs
        return float((difference - difference.mean(dim=1, keepdim=True)).square().mean())

    assert error(joint) < 0.7 * error(nearest)
    steps = joint / scales[:, None]
    assert torch.allclose(steps, steps.round(), atol=1e-4) and steps.abs().max() <= LIMIT


def test_moments_are_those_of_all_batches() -> None:
    inputs = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)) + 3
    moments = MomentsSum()
    for start in range(0, 300, 70):
        moments.add(inputs[:, :, start : start + 70])
    found = moments.result()
    for group in range(2):
        assert torch.allclose(found.covariance[group].float(), torch.cov(inputs[group], correction=0), atol=1e-3)
    assert torch.allclose(found.mean.float(), inputs.mean(dim=2), atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)])
def test_covering_holds_zero_exactly_and_the_ends_nearly(low: float, high: float) -> None:
    stored = affine_qparams(low, high)
    ends = fake_quantize(torch.tensor([0.0, low, high]), stored)
    assert ends[0] == 0
    assert (ends - torch.tensor([0.0, low, high])).abs().max() <= 0.51 * stored.scale[0]
    if low == 0.0 < high:
        assert stored.scale[0] * 255 <= high


def test_best_range_clips_outliers_but_not_plain_values() -> None:
    plain = torch.linspace(-1, 1, 100_001)
    assert power_range([plain]).scale[0] == pytest.approx(2 / 255, rel=0.03)
    spiked = torch.cat([plain * 0.05, torch.tensor([1.0, -1.0])])
    assert power_range([spiked]).scale[0] < 1.7 / 255


def test_a_range_spends_nothing_where_its_reader_tells_nothing_apart() -> None:
    """Hard swish makes 0 of everything below -3, however far below."""
    values = torch.cat([torch.linspace(-3, 3, 1001), torch.linspace(-40, -3, 1001)])
    found = power_range([values], least=-3.0)
    assert found.scale[0] == pytest.approx(6 / 255, rel=0.03)
    assert power_range([values]).scale[0] > 3 * found.scale[0]
    assert power_range([values], least=-3.0, most=1.0).scale[0] == pytest.approx(4 / 255, rel=0.03)


def test_bias_correction_takes_back_the_mean_error() -> None:
    """One depthwise layer on inputs far from zero: rounding its weights alone shifts every output."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 1, 3, 3)).astype(np.float32)
    weight[:, 0, 0, 0] = 8  # a coarse grid for the other eight
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], "cast", to=1),
        helper.make_node("Transpose", ["floats"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w", "b"], ["y"], "conv", group=4),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", 2, ["N", 8, 8, 4])],
        [helper.make_tensor_value_info("y", 1, ["N", 4, 6, 6])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(4, np.float32), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    images = generator.integers(200, 256, size=(8, 8, 8, 4), dtype=np.uint8)
    found = calibrate(model, [images], nodes=["conv"], adjustable=frozenset({"w", "b"}))
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()

    def outputs(w: np.ndarray, b: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.conv2d(planes, torch.from_numpy(w), torch.from_numpy(b), groups=4)

    exact = outputs(weight, np.zeros(4, np.float32)).mean(dim=(0, 2, 3))
    fixed = outputs(found.values["w"], found.values["b"]).mean(dim=(0, 2, 3))
    plain = outputs(found.values["w"], np.zeros(4, np.float32)).mean(dim=(0, 2, 3))
    assert (fixed - exact).abs().max() < 0.2 * (plain - exact).abs().max().clamp(min=0.5)


def test_the_usual_error_is_not_moved_by_a_few_clipped_values() -> None:
    """One value in ten was clipped by 40: the other nine are right, and a bias must leave them so."""
    difference = torch.randn(4, 2, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.01
    difference[:, 1] += 0.5
    difference[:, :, 0] += 40
    assert torch.allclose(
        usual_error([difference], [torch.zeros_like(difference)], channels=1), torch.tensor([0.0, 0.5]), atol=0.01
    )
    assert difference.mean(dim=(0, 2, 3))[0] > 3


def test_dataclass_result_is_frozen(result: CompressResult) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.macs = 0  # type: ignore[misc]


def test_hard_swish_networks_are_quantized_too(place: Path) -> None:
    """Squeeze-and-excitation and hard swish have no integer kernels: what lies between them has."""
    from featcache.compression.refitting import open_source

    build_cache(place / "photos", place / "v3", backbone="mobilenetv3_small_050", weights="random:1", precision="fp32")
    train_head(place / "v3", head=LinearOptions(l2=0.1)).save(place / "v3head")
    merge(place / "v3head", place / "v3", out=place / "v3model", golden="synthetic")
    with open_cache(place / "v3") as cache:
        source = open_source(place / "v3model", cache, dataset=None)
        pixels = load_pixels(Golden.load(place / "v3model" / "golden").images[:4], source.model.preprocessing)
    model = quantized_model(source.model, [pixels])
    graph = write_onnx(model, place / "v3.onnx", outputs=("features",))
    integer, convolutions = integer_share(str(graph))
    assert integer >= 0.8 * convolutions
