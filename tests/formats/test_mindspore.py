"""MindIR of MindSpore, the framework: what the file holds, for whom, and that it is the same every time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import small_model
from onnx import numpy_helper

from featcache.errors import VerificationError
from featcache.formats.interface import ModelFacts, Target
from featcache.formats.registry import find_target
from featcache.formats.tools.program import EnvironmentTarget
from featcache.graph.write import write_onnx
from featcache.model.merged import MergedModel
from featcache.model.quantization import Quantization, along_axis

LABELS = ("cat", "dog, wet", "Öl/„x“")
# what the file says of itself, printed by the framework's own reader of the format
_READ = """
import sys
from mindspore.train.mind_ir_pb2 import ModelProto
model = ModelProto.FromString(open(sys.argv[1], "rb").read())
kinds = {3: "INT8", 1: "FLOAT"}
kernels = [p for p in model.graph.parameter if len(p.dims) == 4 and max(p.dims[1:]) > 1]
print(model.mind_ir_version, *[kinds[kernel.data_type] for kernel in kernels])
print(model.user_info["labels"], end="")
"""


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """Return the format, looked for where the user installed it, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")
    found = find_target("mindspore")
    reason = found.available()
    if reason is not None:
        pytest.skip(f"mindspore: {reason}; {found.needs}")
    return found


def facts_of(model: MergedModel, *, quantized: bool = False) -> ModelFacts:
    return ModelFacts("small", model.classes, model.input, {}, quantized=quantized)


def test_the_reader_of_each_mindir_is_told_apart() -> None:
    facts = facts_of(small_model())
    targets = [find_target(name) for name in ("mslite", "mindir", "mindspore")]
    readers = {t.name: t.tensors(facts)["reader"] for t in targets if isinstance(t, EnvironmentTarget)}
    assert readers == {"mslite": "MindSpore Lite 2.0", "mindir": "MindSpore Lite 2.0", "mindspore": "MindSpore 2.10"}
    assert find_target("mindspore").version() == "mindspore 2.10.0"


@pytest.mark.slow
@pytest.mark.target
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_networks_with_other_operations_give_torchs_logits(target: Target, tmp_path: Path, name: str) -> None:
    model = small_model(name=name)
    graph = write_onnx(model, tmp_path / "graph.onnx")
    files = target.convert(graph, tmp_path, facts=facts_of(model)).files
    shape = (2, model.preprocessing.height, model.preprocessing.width, 3)
    images = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))[0].numpy()
    with target.open(files, threads=1) as runner:
        np.testing.assert_allclose(runner.run(images), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.target
def test_a_file_holds_labels_and_no_date_and_weights_as_the_integers_they_are(target: Target, tmp_path: Path) -> None:
    model = small_model(classes=LABELS)
    plain = write_onnx(model, tmp_path / "float.onnx")
    quantized = write_onnx(model.copy(quantization=rounded_weights(plain)), tmp_path / "int8.onnx")
    facts = facts_of(model, quantized=True)
    written = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        converted = target.convert(quantized, tmp_path / place, facts=facts)
        (file,) = converted.files
        written.append(file.read_bytes())
    assert written[0] == written[1]
    assert target.environment is not None
    interpreter = target.environment.path() / "bin" / "python"
    read = subprocess.run([interpreter, "-c", _READ, file], capture_output=True, text=True, check=True).stdout
    (version, *kinds), *labels = read.splitlines()[0].split(), *read.splitlines()[1:]
    assert version == "3"
    assert set(kinds) == {"INT8"}
    assert labels == list(LABELS)
    images = np.random.default_rng(0).integers(0, 256, size=(2, *facts.image_shape), dtype=np.uint8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))[0].numpy()
    with target.open([file], threads=1) as runner:
        difference = np.abs(runner.run(images) - expected).max()
    assert 0 < difference < 0.05, "rounded, and little"
    assert "stored integers" in str(converted.numbers)


def rounded_weights(graph: Path) -> Quantization:
    """Return stored scales for the weights of all convolutions, that stay floats otherwise."""
    proto = onnx.load(graph).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    weights = {}
    for name in (node.input[1] for node in proto.node if node.op_type == "Conv"):
        scale = np.maximum(np.abs(tensors[name]).max(axis=(1, 2, 3)), 1e-6) / 127
        weights[name] = along_axis(scale.tolist(), axis=0)
    return Quantization((), {}, weights)


@pytest.mark.slow
@pytest.mark.target
def test_an_operation_without_a_form_is_named_and_nothing_is_left(target: Target, tmp_path: Path) -> None:
    model = small_model()
    proto = onnx.load(write_onnx(model, tmp_path / "graph.onnx"))
    next(node for node in proto.graph.node if node.op_type == "Sigmoid").op_type = "Softplus"
    onnx.save(proto, tmp_path / "odd.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(VerificationError, match=r"'mindspore'.*operations without a MindSpore form: Softplus"):
        target.convert(tmp_path / "odd.onnx", tmp_path / "out", facts=facts_of(model))
    assert list((tmp_path / "out").iterdir()) == []
