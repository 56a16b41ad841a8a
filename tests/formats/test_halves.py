"""Weights in half precision in the formats that write their own bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import facts_of, logits_of, pixels, small_model

from featcache.compression.folded import fold_model
from featcache.formats.interface import HALVES, numbers_of
from featcache.formats.registry import find_target
from featcache.formats.tfjs.operations import convert_graph
from featcache.graph.passes import fixed_batch
from featcache.graph.write import write_onnx
from featcache.heads.agreement import logit_tolerance
from featcache.model.halves import in_halves


@pytest.mark.target
def test_a_tensorflow_lite_file_holds_halves_and_gives_torch_s_logits(tmp_path: Path) -> None:
    """Half the bytes of the float file, made floats by DEQUANTIZE, answers within a float file's tolerance."""
    target = find_target("tflite")
    if target.available() is not None:
        pytest.skip(str(target.available()))
    sizes = {}
    for name, model in (("float", small_model()), ("half", in_halves(fold_model(small_model()).model))):
        graph = write_onnx(model, tmp_path / f"{name}.onnx", dynamic=False)
        (tmp_path / name).mkdir()
        facts = dataclasses.replace(facts_of(model), halves=model.halves)
        made = target.convert(graph, tmp_path / name, facts=facts)
        sizes[name] = made.files[0].stat().st_size
        images = pixels(2, model)
        with target.open(made.files, threads=1) as runner:
            wanted = logits_of(model, images)
            assert np.abs(runner.run(images) - wanted).max() <= logit_tolerance(wanted)
    assert made.numbers == HALVES
    assert sizes["half"] < 0.7 * sizes["float"]


def test_tensorflow_js_weights_are_halves_in_the_manifest(tmp_path: Path) -> None:
    """Each weight of a convolution is stored as float16 in two bytes a number, and is the same number."""
    model = in_halves(fold_model(small_model()).model)
    proto = fixed_batch(onnx.load(write_onnx(model, tmp_path / "half.onnx")))
    made = convert_graph(proto, outputs=("logits",), halves=True)
    halves = [weight for weight in made.weights if weight.halves]
    assert halves
    for weight in halves:
        assert weight.manifest()["quantization"] == {"dtype": "float16"}
        back = np.frombuffer(weight.data(), dtype="<f2").astype(np.float32).reshape(weight.values.shape)
        assert np.array_equal(back, weight.values)
    large = [weight for weight in made.weights if weight.values.ndim == 4 and weight.values.size >= 256]
    assert all(weight.halves for weight in large)
    assert not any(weight.halves for weight in convert_graph(proto, outputs=("logits",)).weights)


def test_formats_without_halves_name_what_they_hold() -> None:
    """Floats say nothing, halves that are kept say so, and halves that are not say what they became."""
    facts = facts_of(small_model())
    assert numbers_of(facts, integers="integers") is None
    halved = dataclasses.replace(facts, halves=True)
    assert numbers_of(halved, integers=None, halves=HALVES) == HALVES
    assert numbers_of(halved, integers=None) == "float32: weights are what their float16 numbers stand for"
