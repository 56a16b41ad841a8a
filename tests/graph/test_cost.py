"""What a device file costs, by counting and by measuring, and the verb that measures it again."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from export_models import saved_model, small_model
from onnx import TensorProto, helper
from typer.testing import CliRunner

from featcache.bundle.exporting import export
from featcache.cli import app
from featcache.errors import ExistsError
from featcache.graph.cost import count_cost
from featcache.graph.write import write_onnx
from featcache.runtime import bench, write_plot
from featcache.runtime.benchmark import Benchmark, Latency

FIGURES = {"macs", "parameters", "peak_activation_bytes", "resident_bytes", "power"}


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], path: Path, *, size: int = 4) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [image], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path


def conv(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.weight"], [result], name=name, kernel_shape=[1, 1])


def test_a_chain_holds_two_values_at_once_and_an_activation_is_in_place(tmp_path: Path) -> None:
    weights = {"a.weight": np.ones((8, 3, 1, 1), np.float32), "b.weight": np.ones((2, 8, 1, 1), np.float32)}
    nodes = [conv("a", "image", "x"), helper.make_node("Relu", ["x"], ["y"]), conv("b", "y", "logits")]
    found = count_cost(graph_of(nodes, weights, tmp_path / "chain.onnx"), integers=True)
    assert found.macs == 16 * 3 * 8 + 16 * 8 * 2
    assert found.parameters == 24 + 16
    assert found.peak_activation_bytes == 4 * 16 * (3 + 8)  # the input and the first result


def test_a_shortcut_keeps_its_value_alive(tmp_path: Path) -> None:
    weights = {name: np.ones((3, 3, 1, 1), np.float32) for name in ("a.weight", "b.weight")}
    nodes = [
        conv("a", "image", "x"), conv("b", "x", "y"), helper.make_node("Add", ["image", "y"], ["logits"]),
    ]  # fmt: skip
    found = count_cost(graph_of(nodes, weights, tmp_path / "shortcut.onnx"), integers=True)
    assert found.peak_activation_bytes == 4 * 16 * 3 * 3  # image, x and y; then image, y and the sum


def test_integers_are_counted_as_the_bytes_they_are(tmp_path: Path) -> None:
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    weights = {"a.weight": np.ones((8, 3, 1, 1), np.float32), "b.weight": np.ones((8, 8, 1, 1), np.float32)}
    nodes = [
        conv("a", "image", "x"),
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        conv("b", "d", "logits"),
    ]
    path = graph_of(nodes, {**weights, "s": scale, "z": zero}, tmp_path / "qdq.onnx")
    image, wide = 4 * 16 * 3, 16 * 8
    assert count_cost(path, integers=True).peak_activation_bytes == max(image + wide, wide + 4 * wide)
    assert count_cost(path, integers=False).peak_activation_bytes == 4 * wide + 4 * wide
    assert count_cost(path, integers=True).parameters == 24 + 64, "scales and zero points are no parameters"


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_models_parameters_are_all_counted(tmp_path: Path, name: str) -> None:
    model = small_model(name=name)
    found = count_cost(write_onnx(model, tmp_path / "model.onnx"), integers=True)
    # batch norms are folded into what is before them, mean and deviation of the pixels are added
    assert 0.9 * model.parameter_count() < found.parameters < 1.1 * model.parameter_count()
    assert found.peak_activation_bytes > 3 * 4 * model.preprocessing.height * model.preprocessing.width


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("figures")
    export(saved_model(place / "model"), out=place / "bundle", formats=("onnx", "openvino", "tensorrt"))
    return place / "bundle"


def test_report_has_the_figures_of_every_file(bundle: Path) -> None:
    formats = json.loads((bundle / "report.json").read_text())["export"]["formats"]
    for name, entry in formats.items():
        assert set(entry) >= FIGURES
        assert min(entry["macs"], entry["parameters"], entry["peak_activation_bytes"]) > 0
        assert "not measured" in entry["power"]
        assert (entry["resident_bytes"] is None) == (name == "tensorrt"), "memory is of what ran"
    assert formats["onnx"]["resident_bytes"] > 1_000_000


def test_bench_measures_again_and_draws(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bench.svg"
    arguments = ["bench", str(bundle), "--seconds", "0.05", "--threads", "1", "--plot", str(picture)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["formats"]
    assert list(found) == ["onnx", "openvino", "tensorrt"]
    assert found["onnx"]["latency_ms"]["threads"] == 1
    assert found["onnx"]["resident_bytes"] > 1_000_000
    assert (found["tensorrt"]["executed"], found["tensorrt"]["latency_ms"]) == (False, None)
    assert all(set(entry) >= FIGURES for entry in found.values())
    texts = [element.text for element in ElementTree.parse(picture).iter() if element.text]
    assert {"onnx", "openvino", "tensorrt", "not measured"} <= set(texts)
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, ExistsError)
    shown = CliRunner().invoke(app, ["bench", str(bundle), "--seconds", "0.05", "--format", "onnx"])
    assert "ms (p95" in shown.stdout
    assert "power is not measured" in shown.stderr


def test_a_formats_name_is_text_in_the_picture(tmp_path: Path, bundle: Path) -> None:
    (entry,) = bench(bundle, formats=["onnx"], seconds=0.01, threads=1)
    odd = Benchmark("<b>&", None, 10, Latency(1.0, 2.0, 1, 20), None, entry.cost)
    path = write_plot([odd], tmp_path / "odd.svg")
    assert "<b>&" in [element.text for element in ElementTree.parse(path).iter()]
