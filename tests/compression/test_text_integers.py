"""Static INT8 of a text model: what is calibrated, what becomes integers, and what its files answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from text_encoders import CARDS

import featcache
from featcache.cache import open_cache
from featcache.compression import CompressResult
from featcache.compression.choosing import layers_with_weights, nodes_without
from featcache.compression.folded import fold_model
from featcache.compression.layerwise import calibrate
from featcache.compression.products import looked_up_tables
from featcache.compression.quantization import calibration_inputs
from featcache.compression.refitting import open_source
from featcache.compression.sensitivity import layer_errors
from featcache.errors import InputError
from featcache.graph.cost import node_macs
from featcache.graph.qdq import quantize_weight
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model


@pytest.fixture(scope="module")
def folder(cards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, the cache of its texts, a head, and the merged model."""
    place = tmp_path_factory.mktemp("texts") / "cards"
    shutil.copytree(cards, place, ignore=shutil.ignore_patterns("bundle"))
    return place


@pytest.fixture(scope="module")
def result(folder: Path) -> CompressResult:
    return featcache.quantize(folder / "model", cache=folder / "cache", out=folder / "int8")


def test_products_and_tables_are_integers_of_stored_scales(folder: Path, result: CompressResult) -> None:
    assert result.accuracy_after_refit > result.accuracy_float - 1.5 / result.n
    assert result.feature_error is not None and result.feature_error < 0.05
    assert result.bytes_after < 0.8 * result.bytes_before  # of a network as small as this graph itself counts
    assert result.settings["calibration_images"] <= len(CARDS)
    model = load_model(folder / "int8")
    stored = model.quantization
    assert stored is not None and not stored.dynamic and len(stored.nodes) == 2 * 6
    assert all("MatMul" in name for name in stored.nodes)
    assert sum("embeddings" in name for name in stored.weights) == 3
    graph = onnx.load(write_onnx(model, folder / "int8.onnx"))
    kinds = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
    large = [tensor for tensor in graph.graph.initializer if len(tensor.dims) == 2 and tensor.data_type == 1]
    assert [tensor.name for tensor in large] == []
    tables = [node.input[0] for node in graph.graph.node if node.op_type == "Gather" and "embeddings." in node.name]
    assert [kinds[name] for name in tables] == [TensorProto.INT8] * 3


def test_file_answers_as_its_reference_in_every_format_of_texts(folder: Path, result: CompressResult) -> None:
    """Export refuses a file that agrees with the stored scales on fewer texts than it must."""
    report = featcache.export(result.model, out=folder / "bundle", formats=["openvino"], cache=folder / "cache")
    assert {name: made.executed for name, made in report.formats.items()} == {"onnx": True, "openvino": True}
    assert all(made.disagreements is not None and made.disagreements <= 1 for made in report.formats.values())
    evaluation = featcache.evaluate(folder / "bundle", folder / "cards.csv")
    assert evaluation.n == len(CARDS) and evaluation.accuracy is not None and evaluation.accuracy > 0.9
    predictions = featcache.predict(folder / "bundle", [text for text, _ in CARDS])
    right = [one.label == label for one, (_, label) in zip(predictions, CARDS, strict=True)]
    assert np.mean(right) == pytest.approx(evaluation.accuracy)


def test_neighbours_of_a_text_change_no_answer(folder: Path, result: CompressResult) -> None:
    import onnxruntime

    model = load_model(result.model)
    session = onnxruntime.InferenceSession(str(write_onnx(model, folder / "alone.onnx")))
    arrays = [model.input.prepare(text.encode()) for text in ("card", "where is my money please help me now")]
    both = session.run(["logits"], {"input_ids": model.input.stack(arrays)})[0]
    alone = np.concatenate([session.run(["logits"], {"input_ids": one[None]})[0] for one in arrays])
    np.testing.assert_allclose(both, alone, atol=1e-3 * float(np.abs(alone).max()))


def test_calibration_sees_texts_without_anything_behind_them(folder: Path) -> None:
    with open_cache(folder / "cache") as cache:
        source = open_source(folder / "model", cache)
        batches, again, few = (calibration_inputs(source, count) for count in (4, 4, 1))
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    lengths = [batch.shape[1] for batch in batches]
    assert len(lengths) > 2 and lengths == sorted(set(lengths))
    assert all((batch >= 0).all() for batch in batches)
    assert sum(map(len, batches)) == 4 * 4 and sum(map(len, few)) == 4


def test_texts_of_one_length_need_no_other_batch(folder: Path) -> None:
    """Side by side or one after another, the walk finds the same."""
    folded = fold_model(load_model(folder / "model"))
    ids = [folded.model.input.prepare(text.encode()) for text, _ in CARDS]
    together = np.stack([one for one in ids if len(one) == 4])
    nodes = [node.name for node in layers_with_weights(folded.graph)]
    one, two = (
        calibrate(folded.graph, batches, nodes=nodes, adjustable=folded.adjustable)
        for batches in ([together], [together[:8], together[8:]])
    )
    for name, params in one.quantization.activations.items():
        assert two.quantization.activations[name].scale[0] == pytest.approx(params.scale[0], rel=0.05)
    assert one.error == pytest.approx(two.error, rel=0.5)


def test_a_linear_layer_holds_its_integers_the_other_way_round(folder: Path, result: CompressResult) -> None:
    """Its weight was rounded for its inputs, which need not be the nearest integers, and stands on its grid."""
    exact, rounded = load_model(folder / "model"), load_model(result.model)
    quantization = rounded.quantization
    assert quantization is not None
    moved = 0
    for name, params in quantization.weights.items():
        if not name.endswith("/MatMul.1"):
            continue
        module = name.removesuffix("/MatMul.1")
        weight, before = (model.state_dict()[f"{module}.weight"].numpy().T for model in (rounded, exact))
        integers = quantize_weight(np.ascontiguousarray(weight), params)
        np.testing.assert_allclose(integers * np.array(params.scale, np.float32), weight, rtol=1e-5, atol=1e-9)
        moved += int((integers != quantize_weight(np.ascontiguousarray(before), params)).sum())
    assert moved > 100


def test_bias_behind_a_product_takes_back_its_usual_error() -> None:
    """Weights that cannot be rounded well, inputs far from 0: the product is off in one direction."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(16, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "product"),
        helper.make_node("Add", ["b", "product"], ["y"], "sum"),
    ]
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(4, np.float32), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs = (10 + generator.normal(size=(256, 16))).astype(np.float32)
    free, still = (
        calibrate(model, [inputs], nodes=["product"], adjustable=frozenset(adjustable), limit=7)
        for adjustable in (("b",), ())
    )
    assert set(free.values) == {"b"} and not still.values
    assert free.error < 0.5 * still.error
    integers = quantize_weight(weight, free.quantization.weights["w"])
    off = inputs @ (weight - integers * np.array(free.quantization.weights["w"].scale, np.float32))
    np.testing.assert_allclose(free.values["b"], off.mean(axis=0), atol=0.1)


def test_the_worst_product_in_floats_is_what_helps(folder: Path) -> None:
    """What `--max-error` chooses by: each product's integers alone, measured on texts of several lengths."""
    with open_cache(folder / "cache") as cache:
        inputs = calibration_inputs(open_source(folder / "model", cache), 1)
    folded = fold_model(load_model(folder / "model"))
    adjustable = folded.adjustable
    found = calibrate(folded.graph, inputs, nodes=nodes_without(folded.graph, ()), adjustable=adjustable)
    errors = layer_errors(folded.graph, inputs, found)
    assert {entry.layer for entry in errors} == set(found.quantization.nodes) and len(errors) == 12
    assert sum(entry.macs_share for entry in errors) < 1  # attention's own products are none of these
    assert errors[0].error > 2 * errors[-1].error > 0
    nodes = nodes_without(folded.graph, [entry.layer for entry in errors[:4]])
    better = calibrate(folded.graph, inputs, nodes=nodes, adjustable=adjustable)
    assert better.error < found.error


def test_tables_are_those_that_computed_numbers_choose_rows_of(folder: Path) -> None:
    graph = fold_model(load_model(folder / "model")).graph
    assert len(looked_up_tables(graph)) == 3
    assert set(looked_up_tables(graph)).isdisjoint(node_macs(graph))


def test_training_inside_is_refused_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--method must be 'ptq' for a model of texts, got 'qat'"):
        featcache.quantize(folder / "model", cache=folder / "cache", out=tmp_path / "out", method="qat")
    assert not (tmp_path / "out").exists()
