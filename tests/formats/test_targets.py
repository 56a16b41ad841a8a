"""Device formats beyond ONNX, each made and run with its own tools; a test without them says what is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import saved_model, small_model
from onnx import numpy_helper
from typer.testing import CliRunner

from featcache.bundle.comparison import compare_with_reference
from featcache.bundle.exporting import export
from featcache.cli import app
from featcache.errors import DependencyError, InputError, VerificationError
from featcache.formats.interface import Converted, ModelFacts, Target
from featcache.formats.openvino import OpenVinoTarget
from featcache.formats.registry import find_target
from featcache.formats.status import install_targets, list_targets
from featcache.formats.tools.environments import Environment, find_python
from featcache.graph.nodes import Graph
from featcache.graph.passes import write_single
from featcache.graph.torch_graph import TorchGraph
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel
from featcache.model.quantization import Quantization, QuantParams, along_axis

LABELS = ("cat", "dog, wet", "Öl/„x“")


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


@pytest.fixture(scope="module")
def model() -> MergedModel:
    return small_model(classes=LABELS)


@pytest.fixture(scope="module")
def graph(model: MergedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(model, tmp_path_factory.mktemp("graph") / "graph.onnx")


def facts_of(model: MergedModel) -> ModelFacts:
    return ModelFacts("small", model.classes, model.input, {}, quantized=False)


def pixels(count: int, model: MergedModel) -> np.ndarray:
    shape = (count, model.preprocessing.height, model.preprocessing.width, 3)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def logits_of(model: MergedModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images))[0].numpy()


def installed(name: str) -> Target:
    target = find_target(name)
    reason = target.available()
    if reason is not None:
        pytest.skip(f"{name}: {reason}; {target.needs}")
    return target


def made(name: str, model: MergedModel, graph: Path, folder: Path) -> tuple[Target, tuple[Path, ...]]:
    target = installed(name)
    return target, target.convert(graph, folder, facts=facts_of(model)).files


# --- the graph as torch code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet", "test_convnext"])
def test_torch_form_of_the_graph_computes_the_same(tmp_path: Path, name: str) -> None:
    model = small_model(name=name)
    single = write_single(write_onnx(model, tmp_path / "model.onnx"), tmp_path / "single.onnx")
    images = pixels(1, model)
    with torch.inference_mode():
        logits, probabilities = TorchGraph(Graph.load(single)).eval()(torch.from_numpy(images))
    np.testing.assert_allclose(logits.numpy(), logits_of(model, images), atol=1e-4)
    np.testing.assert_allclose(probabilities.numpy().sum(), 1, atol=1e-5)


def test_an_operation_without_a_torch_form_is_named(graph: Path, tmp_path: Path) -> None:
    proto = onnx.load(graph)
    proto.graph.node[0].op_type = "Sinh"
    with pytest.raises(NotImplementedError, match="Sinh"):
        TorchGraph(Graph(proto))


# --- what is installed ----------------------------------------------------------------------------------------------


def test_every_format_is_listed_with_what_it_needs() -> None:
    listed = {status.name: status for status in list_targets()}
    names = "onnx openvino coreml tflite executorch mslite mindir mindspore ncnn web tfjs tensorrt"
    assert set(names.split()) <= set(listed)
    assert listed["onnx"].missing is None
    assert [listed[name].kind for name in ("executorch", "tflite", "onnx")] == ["environment", "extra", "own"]
    assert "3.7" in listed["mslite"].needs
    assert all(status.needs for status in listed.values())
    printed = CliRunner().invoke(app, ["targets", "--json"])
    assert [entry["name"] for entry in json.loads(printed.stdout)["targets"]] == list(listed)


def test_listing_loads_no_tools_and_no_torch() -> None:
    code = "import sys; from featcache.formats.status import list_targets; list_targets(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {name for name in ("torch", "onnx", "coremltools", "ncnn") if f"'{name}'" in loaded}


def test_export_never_installs_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    model = saved_model(tmp_path / "model")
    with pytest.raises(DependencyError, match=r"'executorch'.*not installed.*featcache targets install executorch"):
        export(model, out=tmp_path / "bundle", formats=("onnx", "executorch"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_network_that_a_format_cannot_hold_is_one_line_and_no_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Converted:
        raise NotImplementedError("operations without a torch form: Sinh")

    monkeypatch.setattr(OpenVinoTarget, "convert", refuse)
    with pytest.raises(VerificationError, match=r"'openvino'.*Sinh.*nothing was exported"):
        export(saved_model(tmp_path / "model"), out=tmp_path / "bundle", formats=["openvino"])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_an_environment_is_made_from_its_pins_and_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "pins.txt").write_text("# nothing\n")
    made_here = Environment("empty", "program.py", "pins.txt", "nothing", 1, programs=tmp_path)
    assert "not installed" in str(made_here.reason())
    made_here.install()
    assert made_here.reason() is None
    code = "import numpy, sys; print(sys.prefix, numpy.__version__)"
    prefix, version = subprocess.run(
        [made_here.interpreter(), "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert Path(prefix) == made_here.path()
    assert version == np.__version__, "our packages are lent"
    (tmp_path / "pins.txt").write_text("# other\n")
    assert "other versions" in str(made_here.reason())


@pytest.mark.slow
def test_a_failed_installation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "pins.txt").write_text("not a requirement at all\n")
    broken = Environment("broken", "program.py", "pins.txt", "nothing", 1, programs=tmp_path)
    with pytest.raises(DependencyError, match="pip says"):
        broken.install()
    assert list((tmp_path / "home" / "targets").iterdir()) == []
    with pytest.raises(DependencyError, match="pdp11"):
        Environment("elsewhere", "program.py", "pins.txt", "x", 1, machines=("pdp11",)).install()


def test_a_python_that_is_not_there_is_named() -> None:
    with pytest.raises(DependencyError, match=r"Python 2\.99.*FEATCACHE_PYTHON299"):
        find_python("2.99")


def test_unknown_format_to_install() -> None:
    with pytest.raises(InputError, match="tarball"):
        install_targets(["tarball"])


# --- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.target
def test_coreml_holds_the_program_the_labels_and_no_date(model: MergedModel, graph: Path, tmp_path: Path) -> None:
    target, files = made("coreml", model, graph, tmp_path)
    assert [path.relative_to(tmp_path).parts[0] for path in files] == ["model.mlpackage"] * 3
    runner = target.reference_runner(files, threads=1)
    assert runner is not None
    images = pixels(2, model)
    np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)
    spec = files[1].read_bytes()
    assert all(label.encode() in spec for label in LABELS)
    assert b"conversion_date" not in spec
    assert str(tmp_path).encode() not in spec
    (tmp_path / "again").mkdir()
    _, again = made("coreml", model, graph, tmp_path / "again")
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in again]


@pytest.mark.target
def test_coreml_pads_as_tensorflow_does(tmp_path: Path) -> None:
    same = small_model(classes=LABELS, pad_type="same")  # more after than before, where the stride is 2
    target, files = made("coreml", same, write_onnx(same, tmp_path / "same.onnx"), tmp_path)
    runner = target.reference_runner(files, threads=1)
    assert runner is not None
    images = pixels(2, same)
    np.testing.assert_allclose(runner.run(images), logits_of(same, images), atol=1e-4)


@pytest.mark.target
def test_coreml_stores_the_weights_of_an_int8_model_as_integers(
    model: MergedModel, graph: Path, tmp_path: Path
) -> None:
    target, plain = made("coreml", model, graph, tmp_path)
    facts = dataclasses.replace(facts_of(model), quantized=True)
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        converted = target.convert(graph, tmp_path / name, facts=facts)
        written.append(converted.files)
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
    assert sum(p.stat().st_size for p in written[0][2:]) < 0.4 * sum(p.stat().st_size for p in plain[2:])
    assert b"constexpr_affine_dequantize" in written[0][1].read_bytes()
    runner = target.reference_runner(written[0], threads=1)
    assert runner is not None
    images = pixels(2, model)
    difference = np.abs(runner.run(images) - logits_of(model, images)).max()
    assert 0 < difference < 0.05, "rounded, and little"
    assert "INT8" in str(converted.numbers)


@pytest.mark.target
def test_coreml_with_another_weight_is_noticed(model: MergedModel, graph: Path, tmp_path: Path) -> None:
    target, files = made("coreml", model, graph, tmp_path)
    weights = bytearray(files[2].read_bytes())
    middle = len(weights) // 128 * 64  # inside a large tensor, which starts at a multiple of 64
    weights[middle : middle + 4096] = np.full(1024, 0.5, dtype=np.float32).tobytes()
    files[2].write_bytes(bytes(weights))
    runner = target.reference_runner(files, threads=1)
    assert runner is not None
    images = pixels(2, model)
    with pytest.raises(VerificationError):
        compare_with_reference(
            "coreml", logits_of(model, images), runner.run(images), quantized=False, task="classification"
        )


@pytest.mark.target
@pytest.mark.parametrize(
    "name", ["mslite", "mindir", "mindspore", "ncnn", pytest.param("executorch", marks=pytest.mark.long)]
)
def test_format_gives_torchs_logits_in_its_own_runtime(
    model: MergedModel, graph: Path, tmp_path: Path, name: str
) -> None:
    target, files = made(name, model, graph, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    images = pixels(3, model)
    with target.open(files, threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-4)
        assert min(runner.time(images[:1], seconds=0.01, least=3)) > 0
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in files)


@pytest.mark.slow
@pytest.mark.target
def test_mslite_is_told_the_epsilon_of_layer_normalisation(tmp_path: Path) -> None:
    vit = small_model(name="test_vit", classes=tuple("abcdefghij"), gain=0.1)
    target, files = made("mslite", vit, write_onnx(vit, tmp_path / "graph.onnx"), tmp_path)
    images = pixels(2, vit)
    with target.open(files, threads=1) as runner:
        # 1.3e-3 where its converter reads LayerNormalization, as of an epsilon of nothing
        np.testing.assert_allclose(runner.run(images), logits_of(vit, images), atol=1e-4)


@pytest.mark.target
def test_a_format_that_cannot_convert_says_why_and_leaves_nothing(
    model: MergedModel, graph: Path, tmp_path: Path
) -> None:
    target = installed("mslite")
    proto = onnx.load(graph)
    next(node for node in proto.graph.node if node.op_type == "Conv").op_type = "Sinh"
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises((VerificationError, NotImplementedError), match="Sinh"):
        target.convert(tmp_path / "odd.onnx", tmp_path, facts=facts_of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


def test_unexecuted_formats_say_so_and_what_computed_them(tmp_path: Path) -> None:
    report = export(saved_model(tmp_path / "model"), out=tmp_path / "bundle", formats=("onnx", "tensorrt"))
    entry = report.formats["tensorrt"].to_json()
    assert (entry["executed"], entry["latency_ms"], entry["accuracy"]) == (False, None, None)
    assert "graphics processor" in entry["reason"]
    assert "ONNX Runtime" in entry["computed_by"]
    assert entry["max_abs_diff"] < 1e-4
    command = (tmp_path / "bundle" / "tensorrt" / "build_engine.sh").read_text()
    subprocess.run(["sh", "-n"], input=command, text=True, check=True)
    assert "--onnx=model.tensorrt.onnx" in command


def test_tensorrt_gets_symmetric_scales_of_the_same_range(graph: Path) -> None:
    from featcache.formats.tensorrt import symmetric

    proto = onnx.load(graph)
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    weight = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == conv.input[1]))
    proto = onnx.load(graph)
    from featcache.graph.qdq import apply_quantization

    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-6) / 127
    stored = Quantization(
        (conv.name,),
        {conv.input[0]: QuantParams((0.05,), (100,), "uint8", None)},
        {conv.input[1]: along_axis(scale.tolist(), axis=0)},
    )
    quantized = apply_quantization(proto, stored)
    symmetric(quantized)
    onnx.checker.check_model(quantized)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    nodes = [n for n in quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) == 3, "a bias in floats needs no node"
    assert all(values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any() for node in nodes)
    np.testing.assert_allclose(values[nodes[0].input[1]], 0.05 * 155 / 127, rtol=1e-6)
