"""Convolutions behind the pooling: floats from 8-bit weights, which a runtime unpacks once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import small_model
from onnx import TensorProto

from featcache.bundle.exporting import export
from featcache.compression.choosing import behind_pooling, integer_nodes, nodes_without
from featcache.compression.folded import FoldedModel, fold_model
from featcache.compression.layerwise import calibrate
from featcache.compression.quantization import quantized_model
from featcache.engines.session import open_session
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel

NETWORK = "mobilenetv3_small_050"  # its last convolution follows the pooling, as in every MobileNetV3
LAST = "backbone.network.conv_head/Conv"
WEIGHT = "backbone.network.conv_head.weight"
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folded() -> FoldedModel:
    return fold_model(small_model(name=NETWORK))


@pytest.fixture(scope="module")
def integers() -> MergedModel:
    return quantized_model(small_model(name=NETWORK), PIXELS, float_share=0.0)


def test_only_what_follows_the_last_pooling_is_behind_it(folded: FoldedModel) -> None:
    """Squeeze-and-excitation pools too, but its answers return to the maps, whose pooling follows."""
    assert behind_pooling(folded.graph) == [LAST]
    assert behind_pooling(fold_model(small_model(name="test_resnet")).graph) == []
    assert behind_pooling(fold_model(small_model(name="test_vit")).graph) == []  # the image meets no pooling


def test_it_computes_in_floats_with_weights_of_8_bits(integers: MergedModel) -> None:
    """Whatever share of the multiplications may stay in floats."""
    stored = integers.quantization
    assert stored is not None and LAST not in stored.nodes
    scale = np.array(stored.weights[WEIGHT].scale, dtype=np.float32)
    steps = integers.state_dict()[WEIGHT].numpy() / scale[:, None, None, None]
    assert np.abs(steps - np.rint(steps)).max() < 1e-4 and np.abs(steps).max() < 64.5


def test_that_is_nearer_to_the_float_features(folded: FoldedModel) -> None:
    kept = integer_nodes(folded.graph, float_share=0.0)
    every = nodes_without(folded.graph, ())
    assert {*every} - {*kept} == {LAST}
    errors = [
        calibrate(folded.graph, PIXELS, nodes=nodes, stored=stored, adjustable=folded.adjustable, power=2.0).error
        for nodes, stored in ((kept, [LAST]), (every, []))
    ]
    assert errors[0] < 0.9 * errors[1]


def test_the_runtime_unpacks_its_weights_once(integers: MergedModel, tmp_path: Path) -> None:
    """The file holds bytes, and the graph that ONNX Runtime makes of it computes nothing of them for an image."""
    path = write_onnx(integers, tmp_path / "model.onnx", outputs=("features",))
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert stored[f"{WEIGHT}/quantized"].data_type == TensorProto.INT8
    session = open_session(path, save_optimised=tmp_path / "as_run.onnx")
    as_run = onnx.load(tmp_path / "as_run.onnx").graph.node
    assert not [node.name for node in as_run if f"{WEIGHT}/quantized" in node.input or node.name.startswith(WEIGHT)]
    told = write_onnx(integers, tmp_path / "told.onnx", outputs=("features",), dynamic=False)
    features = [each.run(None, {"image": PIXELS})[0] for each in (session, open_session(told))]
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-5)
    assert path.stat().st_size < told.stat().st_size + 1000


def test_device_files_answer_as_it_does(integers: MergedModel, tmp_path: Path) -> None:
    report = export(integers, out=tmp_path / "bundle", formats=["onnx", "tflite"])
    for made in report.formats.values():
        assert made.executed and made.disagreements == 0
    held = {tensor.name for tensor in onnx.load(tmp_path / "bundle" / "model.onnx").graph.initializer}
    assert f"{WEIGHT}/quantized" in held and WEIGHT not in held
