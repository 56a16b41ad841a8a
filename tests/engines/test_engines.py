"""Engines: they agree with torch, a row does not depend on its neighbours, compiled networks are kept safely."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from featcache.backbone.backbone import Backbone
from featcache.backbone.load import load_backbone
from featcache.engines import Engine, _network_cache, _openvino, _torch, open_cached_engine, open_engine
from featcache.engines._openvino import LEAST_COSINE, Arithmetic, open_backbone, processor_arithmetic
from featcache.engines.precision import (
    MIN_COSINE,
    check_images,
    lowest_cosine,
    reference_rows,
)
from featcache.errors import BackboneError, FormatError, InputError, MissingError
from featcache.recipe import Preprocessing, Recipe
from featcache.system.processor import processor_has_bf16

NAMES = ("openvino", "onnxruntime", "torch")
NAME = "test_efficientnet"  # timm's own small network for tests: 160x160 pixels


@pytest.fixture(autouse=True)
def _own_network_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(NAME, weights="random:0", outputs=("features", "stage2"))


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest, backbone: Backbone) -> Iterator[Engine]:
    with open_engine(backbone, engine=request.param, precision="fp32", batch_size=4, cached=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    """Eleven images: two whole batches of four and a partial one."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), dtype=np.uint8)
    return np.concatenate([check_images(160, 160), noise])


def test_an_engine_computes_what_torch_does(engine: Engine, backbone: Backbone, images: npt.NDArray[np.uint8]) -> None:
    rows, wanted = engine.run(images), reference_rows(backbone, images)
    assert engine.columns == (("features", (256,)), ("stage2", (24,)))
    assert [values.dtype for values in rows] == [np.float32, np.float32]
    assert lowest_cosine(rows, wanted) > 0.999999
    np.testing.assert_allclose(rows[0], wanted[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_with_token_outputs_run_everywhere(name: str) -> None:
    vit = load_backbone(
        "vit_tiny_patch16_224",
        weights="random:0",
        outputs=("features", "tokens", "cls-2"),
        model_kwargs={"img_size": 64, "depth": 3},
    )
    pictures = check_images(64, 64)
    with open_engine(vit, engine=name, precision="fp32", batch_size=3, cached=False) as opened:
        assert opened.columns == (("features", (192,)), ("tokens", (4, 4, 192)), ("cls-2", (192,)))
        rows = opened.run(pictures)
        assert lowest_cosine(rows, reference_rows(vit, pictures)) > 0.999999
        np.testing.assert_array_equal(opened.run(pictures[5:6])[1][0], rows[1][5])


# --- precision ------------------------------------------------------------------------------------------------------


def test_check_images_are_varied_and_always_the_same() -> None:
    images = check_images(96, 64)
    assert images.shape == (8, 96, 64, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, check_images(96, 64))
    flat = images.reshape(8, -1).astype(float)
    assert np.abs(np.corrcoef(flat) - np.eye(8)).max() < 0.99
    assert flat.std(axis=1).min() > 20


def test_lowest_cosine_is_the_worst_row_of_the_worst_output() -> None:
    good, bad = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [2.0, 2.0]])
    assert lowest_cosine([good], [good * 3]) == pytest.approx(1)
    assert lowest_cosine([good, bad], [good, good]) == pytest.approx(np.sqrt(0.5))
    assert lowest_cosine([np.zeros((1, 2))], [np.zeros((1, 2))]) == 1
    assert lowest_cosine([np.zeros((1, 2))], [np.ones((1, 2))]) == 0
    assert lowest_cosine([np.full((1, 2), np.nan)], [np.ones((1, 2))]) == -1


def test_bf16_is_taken_only_where_the_check_images_agree(backbone: Backbone) -> None:
    if not processor_arithmetic().bf16:
        pytest.skip("this processor has no bf16")
    with open_engine(backbone, batch_size=4, cached=False) as opened:
        assert opened.precision == "bf16"
    strict = {**LEAST_COSINE, "bf16": 1.0}
    for _ in range(2):  # compiled, then from the kept networks
        with open_backbone(backbone, precision="auto", batch_size=4, cached=True, least_cosine=strict) as opened:
            assert opened.precision == "fp32"


@pytest.fixture(scope="module")
def transformer() -> Backbone:
    return load_backbone("vit_tiny_patch16_224", weights="random:0", model_kwargs={"img_size": 64, "depth": 3})


def test_transformers_multiply_integers_where_the_check_images_agree(transformer: Backbone) -> None:
    if not processor_arithmetic().dynamic_int8:
        pytest.skip("this processor has not both VNNI and bf16")
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    pictures = np.concatenate([check_images(64, 64), noise])
    with open_engine(transformer, batch_size=4) as opened:
        assert opened.precision == "int8-dynamic"
        (rows,) = opened.run(pictures)
        assert 0.999 <= lowest_cosine([rows], reference_rows(transformer, pictures)) < 0.99999
        np.testing.assert_array_equal(opened.run(pictures[9:10])[0][0], rows[9])  # no row depends on its neighbours
    for precision in ("bf16", "auto"):  # one kept network is not taken for the other
        with open_engine(transformer, batch_size=4, precision=precision) as again:
            assert again.precision == ("bf16" if precision == "bf16" else "int8-dynamic")
    strict = {**LEAST_COSINE, "int8-dynamic": 0.99999}
    with open_backbone(transformer, precision="auto", batch_size=4, cached=False, least_cosine=strict) as careful:
        assert careful.precision == "bf16"


def test_only_matrix_products_count_for_dynamic_integers(transformer: Backbone, backbone: Backbone) -> None:
    assert _openvino._Graph.of(transformer, batch_size=1).product_share > 0.8
    graph = _openvino._Graph.of(backbone, batch_size=1)
    assert graph.product_share < 0.01
    if processor_arithmetic().dynamic_int8:
        with pytest.raises(InputError, match=r"'int8-dynamic'.*few of its multiplications are matrix products"):
            open_engine(backbone, engine="openvino", precision="int8-dynamic", cached=False)


def test_a_batch_is_what_the_caches_hold(backbone: Backbone) -> None:
    large = load_backbone("mobilenetv2_100", weights="random:0")
    with open_engine(large, engine="openvino", precision="fp32", cached=False) as opened:
        assert opened.batch_size == 4  # 112 x 112 x 96 numbers after the first expansion
    with open_engine(backbone, engine="openvino", precision="fp32", cached=False) as opened:
        assert opened.batch_size == 16


@pytest.mark.parametrize("int8", [False, True])
def test_a_precision_that_the_machine_lacks_is_refused_by_name(backbone: Backbone, int8: bool) -> None:
    old = {"batch_size": 4, "cached": False, "arithmetic": Arithmetic(bf16=False, int8=int8)}
    with open_backbone(backbone, precision="auto", **old) as opened:
        assert opened.precision == "fp32"
    with pytest.raises(InputError, match=r"'bf16'.*neither AVX512-BF16 nor AMX.*fp32"):
        open_backbone(backbone, precision="bf16", **old)
    with pytest.raises(InputError, match=r"'int8-dynamic'.*VNNI"):
        open_backbone(backbone, precision="int8-dynamic", **old)


def test_a_precision_or_engine_that_is_none_is_refused(backbone: Backbone) -> None:
    with pytest.raises(InputError, match=r"'bf16'.*fp32 only"):
        open_engine(backbone, engine="onnxruntime", precision="bf16")
    with pytest.raises(InputError, match="precision must be"):
        open_engine(backbone, precision="fp8")
    with pytest.raises(InputError, match="engine must be"):
        open_engine(backbone, engine="tensorflow")


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mobilenetv2_100.torch_ptq", "mobilenetv2_100.tf_float_headless"])
def test_real_weights_keep_their_rows_in_the_chosen_precision(name: str, shared_weights: Callable[[str], Path]) -> None:
    real = load_backbone(None, weights=shared_weights(name))
    images = check_images(224, 224)
    with open_engine(real, engine="openvino", cached=False) as opened:
        assert lowest_cosine(opened.run(images), reference_rows(real, images)) >= MIN_COSINE
        if processor_arithmetic().bf16:
            # Plain bf16 ruins both; fp32 for the first convolutions saves the one.
            assert opened.precision == ("bf16" if "ptq" in name else "fp32")


# --- kept networks --------------------------------------------------------------------------------------------------


def _recipe(backbone: Backbone, engine: Engine, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": backbone.model_name,
        "model_kwargs": backbone.model_kwargs,
        "model_digest": None,
        "weights_sha256": backbone.weights_sha256,
        "outputs": backbone.outputs,
        "preprocessing": backbone.preprocessing,
        "decoder": "pillow",
        "dct_scaling": False,
        "orientation": "exif",
        "views": 1,
        "view_seed": 0,
        "engine": engine.name,
        "engine_version": engine.version,
        "precision": engine.precision,
        "dtype": "float16",
        "weights": backbone.weights_label,
    }
    return Recipe(**{**values, **changes})


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_kept_network_gives_the_same_bits_without_being_made_again(
    name: str, backbone: Backbone, images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.engines import _onnxruntime

    with open_engine(backbone, engine=name) as made:
        rows = made.run(images)
        recipe = _recipe(backbone, made)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network is made again")

    monkeypatch.setattr(_openvino._Graph, "of", refuse)
    monkeypatch.setattr(_onnxruntime, "_exported", refuse)
    with open_engine(backbone, engine=name) as kept:
        assert kept.precision == made.precision
        for values, again in zip(rows, kept.run(images), strict=True):
            np.testing.assert_array_equal(values, again)
    opened = open_cached_engine(recipe)
    assert opened is not None
    np.testing.assert_array_equal(opened.run(images)[0], rows[0])
    assert opened.columns == made.columns
    for change in ({"weights_sha256": "1" * 64}, {"model_digest": "1" * 64}, {"outputs": ("features",)}):
        assert open_cached_engine(_recipe(backbone, made, **change)) is None


def test_a_damaged_kept_network_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "entry.network"
    _network_cache.save_entry(path, {"precision": "fp32"}, b"payload" * 100)
    header, payload = _network_cache.load_entry(path) or ({}, b"")
    assert (header["precision"], payload) == ("fp32", b"payload" * 100)
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b"\xff" * 4096):
        path.write_bytes(damaged)
        assert _network_cache.load_entry(path) is None


def test_a_damaged_kept_network_is_made_again(backbone: Backbone, images: npt.NDArray[np.uint8]) -> None:
    with open_engine(backbone, engine="openvino", precision="fp32") as made:
        rows = made.run(images)[0]
    (path,) = _network_cache.cache_directory().glob("*.network")
    path.write_bytes(path.read_bytes()[:-1])
    with open_engine(backbone, engine="openvino", precision="fp32") as again:
        np.testing.assert_array_equal(again.run(images)[0], rows)
    assert _network_cache.load_entry(path) is not None


def test_a_changed_network_is_not_taken_for_the_one_of_its_name(images: npt.NDArray[np.uint8]) -> None:
    changed = load_backbone(NAME, weights="random:0")
    with open_engine(changed, precision="fp32") as made:
        before = made.run(images[:1])[0]
    with torch.no_grad():
        for parameter in changed.network.parameters():
            parameter.mul_(1.1)
    with open_engine(changed, precision="fp32") as made:
        after = made.run(images[:1])[0]
        assert lowest_cosine([after], reference_rows(changed, images[:1])) > 0.99999
    assert not np.array_equal(before, after)


def test_a_directory_that_cannot_be_written_to_only_costs_time(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "file"))
    with open_engine(backbone, engine="openvino", precision="fp32") as opened:
        assert opened.columns[0] == ("features", (256,))


def test_the_oldest_networks_make_room() -> None:
    paths = [_network_cache.entry_path({"number": number}) for number in range(4)]
    for number, path in enumerate(paths):
        _network_cache.save_entry(path, {}, bytes(1000), max_bytes=3000)
        import os

        os.utime(path, (number, number))
    _network_cache.save_entry(_network_cache.entry_path({"number": 9}), {}, bytes(1000), max_bytes=3000)
    assert [path.exists() for path in paths] == [False, False, False, True]


def test_the_quick_start_imports_neither_torch_nor_timm(backbone: Backbone, tmp_path: Path) -> None:
    with open_engine(backbone, engine="openvino") as made:
        recipe = _recipe(backbone, made)
    (tmp_path / "recipe.json").write_text(__import__("json").dumps(recipe.to_json()))
    program = (
        "import json, sys; from featcache.engines import open_cached_engine; from featcache.recipe import Recipe;"
        "engine = open_cached_engine(Recipe.from_json(json.load(open(sys.argv[1]))));"
        "print(engine.columns[0][0], 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "recipe.json")], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["features", "False", "False"]


def test_an_interrupt_finds_its_stack_after_engines_that_overlapped() -> None:
    """Each Core of OpenVINO's lends the thread a signal stack; of two, the one let go of last put back a freed one."""
    program = (
        "import os, signal\n"
        "from featcache.backbone.load import load_backbone\n"
        "from featcache.engines import open_engine\n"
        f"backbone = load_backbone({NAME!r}, weights='random:0')\n"
        "first = open_engine(backbone, engine='openvino', precision='fp32', batch_size=1, cached=False)\n"
        "second = open_engine(backbone, engine='openvino', precision='fp32', batch_size=2, cached=False)\n"
        "first.close(); del first; second.close(); del second\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr[-500:]


# --- ONNX files -----------------------------------------------------------------------------------------------------


def _tiny_onnx(path: Path, *, quantized: bool = False, float_input: bool = False) -> None:
    """A graph that averages the image's pixels per channel; quantized, through a QuantizeLinear pair."""
    shape = ["N", 3, 8, 8] if float_input else ["N", 8, 8, 3]
    kind = TensorProto.FLOAT if float_input else TensorProto.UINT8
    nodes, last = [], "image"
    if not float_input:
        nodes.append(helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT))
        last = "floats"
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", [last, "scale", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
        last = "dq"
    axes = [2, 3] if float_input else [1, 2]
    nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["features"], keepdims=0))
    nodes.append(helper.make_node("ReduceMax", [last, "axes"], ["largest"], keepdims=0))
    constants = [numpy_helper.from_array(np.array(axes), "axes")]
    if quantized:
        constants.append(numpy_helper.from_array(np.float32(1), "scale"))
        constants.append(numpy_helper.from_array(np.uint8(0), "zero"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("features", "largest")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


def test_an_onnx_file_is_an_engine(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    means = images.astype(np.float64).mean(axis=(1, 2))
    _tiny_onnx(tmp_path / "float.onnx")
    with open_engine(tmp_path / "float.onnx", batch_size=2) as opened:
        assert (opened.name, opened.precision) == ("onnxruntime", "fp32")
        assert opened.columns == (("features", (3,)), ("largest", (3,)))
        np.testing.assert_allclose(opened.run(images)[0], means, rtol=1e-5)
    _tiny_onnx(tmp_path / "int8.onnx", quantized=True)
    with open_engine(tmp_path / "int8.onnx", outputs=("largest",)) as opened:
        assert opened.precision == "int8"
        assert opened.columns == (("largest", (3,)),)
        np.testing.assert_array_equal(opened.run(images)[0], images.max(axis=(1, 2)))


def test_a_float_input_is_normalised(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    _tiny_onnx(tmp_path / "float.onnx", float_input=True)
    preprocessing = Preprocessing(8, 8, 8, "bicubic", "center", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with open_engine(tmp_path / "float.onnx", preprocessing=preprocessing) as opened:
        wanted = (images.mean(axis=(1, 2)) / 255 - preprocessing.mean) / preprocessing.std
        np.testing.assert_allclose(opened.run(images)[0], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="preprocessing="):
        open_engine(tmp_path / "float.onnx")


def test_onnx_files_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        open_engine(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("this is no network")
    with pytest.raises(FormatError, match="ONNX"):
        open_engine(tmp_path / "text.onnx")
    _tiny_onnx(tmp_path / "float.onnx")
    with pytest.raises(BackboneError, match="'logits'"):
        open_engine(tmp_path / "float.onnx", outputs=("logits",))
    with pytest.raises(InputError, match="'fp32'"):
        open_engine(tmp_path / "float.onnx", precision="int8")
    with pytest.raises(InputError, match="onnxruntime"):
        open_engine(tmp_path / "float.onnx", engine="torch")


def test_the_processor_is_asked_for_bf16() -> None:
    assert processor_has_bf16() in (True, False)


# --- torch ----------------------------------------------------------------------------------------------------------


def test_torch_works_on_a_copy_with_its_channels_last(backbone: Backbone) -> None:
    prepared = _torch._prepared(backbone, torch.device("cpu"))
    convolutions = [module for module in prepared.modules() if isinstance(module, torch.nn.Conv2d)]
    assert convolutions
    wide = [m for m in convolutions if m.weight.shape[1] > 1 and m.kernel_size != (1, 1)]
    assert wide
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in wide)
    originals = [module.weight for module in backbone.network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(weight.is_contiguous() for weight in originals)


def test_torch_in_bf16_is_bit_equal_and_close(backbone: Backbone, images: npt.NDArray[np.uint8]) -> None:
    if not processor_has_bf16():
        pytest.skip("this processor has no bf16")
    with open_engine(backbone, engine="torch", precision="bf16", batch_size=4) as opened:
        rows = opened.run(images)[0]
        assert lowest_cosine([rows], reference_rows(backbone, images)[:1]) >= MIN_COSINE
        np.testing.assert_array_equal(opened.run(images[::-1])[0][::-1], rows)


def test_torch_takes_bf16_where_the_device_has_it_and_the_check_images_agree(backbone: Backbone) -> None:
    """Which precision is chosen for a device; it is stood in for by the processor in fp32."""
    opened: list[str] = []

    class StandIn(_torch.TorchEngine):
        def __init__(self, backbone: Backbone, *, precision: Any, batch_size: int) -> None:
            opened.append(precision)
            super().__init__(backbone, precision="fp32", batch_size=batch_size)
            self.precision = precision

    device = {"precision": "auto", "batch_size": 4}
    assert _torch.open_checked(StandIn, backbone, has_bf16=True, **device).precision == "bf16"
    assert _torch.open_checked(StandIn, backbone, has_bf16=True, least_cosine=1.1, **device).precision == "fp32"
    assert _torch.open_checked(StandIn, backbone, has_bf16=False, **device).precision == "fp32"
    assert opened == ["bf16", "bf16", "fp32", "fp32"]
    with pytest.raises(InputError, match="no bf16 arithmetic"):
        _torch.open_checked(StandIn, backbone, has_bf16=False, precision="bf16", batch_size=4)


def test_auto_takes_torch_where_there_is_a_cuda_device(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would leave the device idle; the refusal names the engine that was chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(InputError, match="computes with torch"):
        open_engine(backbone, precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_agrees_and_is_bit_equal(backbone: Backbone, images: npt.NDArray[np.uint8]) -> None:
    with open_engine(backbone, batch_size=4) as opened:
        assert (opened.name, opened.on_device) == ("torch", True)
        rows = opened.run(images)
        assert lowest_cosine(rows, reference_rows(backbone, images)) >= MIN_COSINE
        np.testing.assert_array_equal(opened.run(images[::-1])[0][::-1], rows[0])
