"""A prototype head that measures angles goes to every device: its normalisation is a handful of small operations."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import LABELS, facts_of, logits_of, pixels, small_model

from featcache.formats.interface import Target
from featcache.formats.registry import find_target
from featcache.graph.write import write_onnx
from featcache.heads.prototype import PrototypeHead
from featcache.model.merged import MergedModel


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


@pytest.fixture(scope="module")
def model() -> MergedModel:
    """Return a small network with a prototype head of the cosine metric."""
    plain = small_model(classes=LABELS)
    width = plain.backbone.num_features
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((len(LABELS), width)).astype(np.float32)
    head = PrototypeHead(
        classes=LABELS,
        prototypes=prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True),
        center=rng.standard_normal(width).astype(np.float32),
        scale=np.ones(width, dtype=np.float32),
        metric="cosine",
        sharpness=10.0,
    )
    return plain.with_head(head)


@pytest.fixture(scope="module")
def graph(model: MergedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ONNX file of the model."""
    return write_onnx(model, tmp_path_factory.mktemp("cosine") / "graph.onnx")


def installed(name: str) -> Target:
    target = find_target(name)
    reason = target.available()
    if reason is not None:
        pytest.skip(f"{name}: {reason}; {target.needs}")
    return target


def test_cosine_head_graph_normalises_each_row(graph: Path) -> None:
    """The graph has the operations that six writers once refused; else the other tests here would show nothing."""
    assert {"ReduceSum", "Sqrt", "Clip", "Div"} <= {node.op_type for node in onnx.load(graph).graph.node}


@pytest.mark.target
@pytest.mark.parametrize(
    "name",
    [
        "onnx", "openvino", "tflite", "tfjs", "ncnn", "coreml",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mslite", "mindir", "mindspore")),
        pytest.param("executorch", marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)  # fmt: skip
def test_cosine_head_exported_gives_torchs_logits(model: MergedModel, graph: Path, tmp_path: Path, name: str) -> None:
    """Each writer takes the head, and what it wrote computes the angles that torch computes."""
    target = installed(name)
    files = target.convert(graph, tmp_path, facts=facts_of(model)).files
    runner = target.open(files, threads=1) if target.executable() is None else target.reference_runner(files, threads=1)
    if runner is None:
        pytest.skip(f"{name}: {target.executable()}")
    images = pixels(2, model)
    with runner:
        np.testing.assert_allclose(runner.run(images), logits_of(model, images), atol=1e-3)
