"""Float files are held to torch's logits by a share of their spread: right ones pass whatever the penalty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from export_models import LABELS, facts_of, small_model

from featcache.bundle.comparison import compare_with_reference
from featcache.errors import VerificationError
from featcache.formats import Target, find_target, target_names
from featcache.graph.write import write_onnx
from featcache.heads import LinearHead
from featcache.heads.agreement import logit_tolerance
from featcache.heads.solvers.paths import solve
from featcache.heads.solvers.problem import Problem
from featcache.model.merged import MergedModel
from featcache.runtime.classifier import TorchRunner


def _light(name: str) -> bool:
    """Return whether a format runs in this process with what is installed here."""
    target = find_target(name)
    return target.environment is None and target.available() is None and target.executable() is None


def _images(model: MergedModel, count: int) -> np.ndarray:
    """Return images that differ as photos do: a colour each, and patches."""
    size, rng = model.preprocessing, np.random.default_rng(3)
    patches = rng.integers(0, 256, size=(count, 8, 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(patches, size.height // 8, axis=1), size.width // 8, axis=2)


@pytest.fixture(scope="module")
def plain() -> MergedModel:
    """A model whose head is to be replaced."""
    return small_model(classes=LABELS)


@pytest.fixture(scope="module")
def features(plain: MergedModel) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return plain.features(torch.from_numpy(_images(plain, 60))).numpy()


def _fitted(plain: MergedModel, features: np.ndarray, *, l2: float, largest: float | None) -> MergedModel:
    """Return the model with a head fitted at `l2`, scaled so that its largest logit is `largest`."""
    labels = np.arange(len(features)) % len(LABELS)
    found = solve(Problem(features=features, targets=labels), l2=l2)
    scale = 1.0 if largest is None else largest / np.abs(features @ found.weight.T + found.bias).max()
    weight, bias = (scale * values.astype(np.float32) for values in (found.weight, found.bias))
    head = LinearHead(classes=LABELS, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    return MergedModel(plain.backbone, head, recipe=plain.recipe, lineage=[{"verb": "merge"}])


@pytest.fixture(scope="module", params=[name for name in target_names() if _light(name)])
def target(request: pytest.FixtureRequest) -> Target:
    return find_target(request.param)


@pytest.mark.parametrize(
    ("l2", "largest"), [(1e-6, None), (1e-4, None), (1e-2, None), (1.0, None), (10.0, None), (1e-6, 1e4), (10.0, 1e4)]
)
def test_right_files_pass_whatever_the_penalty(
    l2: float, largest: float | None, target: Target, plain: MergedModel, features: np.ndarray, tmp_path: Path
) -> None:
    """A penalty of 1e-6 or logits of ten thousand make no format fail; probabilities and classes agree."""
    model = _fitted(plain, features, l2=l2, largest=largest)
    images = _images(model, 20)
    folder = tmp_path / target.name
    folder.mkdir()
    made = target.convert(write_onnx(model, tmp_path / "graph.onnx"), folder, facts=facts_of(model))
    expected = TorchRunner(model).run(images)
    with target.open(made.files, threads=1) as runner:
        logits = runner.run(images)
    found = compare_with_reference(
        target.name, expected, logits, quantized=False, task="classification", tolerance=target.tolerance
    )
    assert found.tolerance == logit_tolerance(expected, target.tolerance)
    assert found.max_abs_diff <= found.tolerance
    assert found.changed == 0
    if largest is None:
        assert found.max_probability_diff is not None and found.max_probability_diff < 1e-3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_wrong_files_are_refused_at_every_scale(scale: float) -> None:
    """What differs by a thousandth of the spread is refused, whatever the scale; by a hundred-thousandth it passes."""
    reference = (scale * np.random.default_rng(0).standard_normal((50, 4))).astype(np.float32)
    wrong, right = 1e-3 * max(scale, 1.0), 1e-5 * max(scale, 1.0)
    compare_with_reference("x", reference, reference + np.float32(right), quantized=False, task="regression")
    with pytest.raises(VerificationError, match="within"):
        compare_with_reference("x", reference, reference + np.float32(wrong), quantized=False, task="regression")


def test_a_far_offset_counts_as_spread() -> None:
    """Values around a million that differ by one have no seven digits left to differ in."""
    reference = np.float32(1e6) + np.arange(8, dtype=np.float32)[:, None]
    compare_with_reference("x", reference, reference + np.float32(0.25), quantized=False, task="regression")
    assert logit_tolerance(reference) == pytest.approx(100, rel=1e-3)


def test_what_may_change_places_is_relative_too() -> None:
    """Of large logits, two that are equal in float32's last digits may change places."""
    reference = np.tile(np.array([[5000.0, 4999.9, -9000.0]], dtype=np.float32), (10, 1))
    swapped = reference[:, [1, 0, 2]]
    found = compare_with_reference("x", reference, swapped, quantized=False, task="classification")
    assert found.changed == 10 and found.max_abs_diff <= found.tolerance


def test_probabilities_are_compared_by_task() -> None:
    reference = np.array([[0.0, 0.0]], dtype=np.float32)
    other = np.array([[0.0, 1e-4]], dtype=np.float32)
    for task, expected in (("classification", 2.5e-5), ("multilabel", 2.5e-5), ("regression", None)):
        found = compare_with_reference("x", reference, other, quantized=False, task=task)
        assert found.max_probability_diff == (None if expected is None else pytest.approx(expected, rel=0.01))
