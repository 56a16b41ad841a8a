"""Small models made of a large one, tried out on the validation images: what a search chooses from.

Each candidate is a MODEL, and it is its own exported graph that is run: what is measured is what would ship.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from featcache.cache import FeatureCache
from featcache.compression.measurement import latencies_ms
from featcache.engines.session import open_session
from featcache.errors import MissingError
from featcache.images.batches import decoded_batches
from featcache.model.merged import MergedModel

VIEWS = 5  # of each val image, where there are few
FEW_IMAGES = 2000
_Z = 1.959964  # of a 95 % interval
_FIELDS = (
    "name", "steps", "val_accuracy", "drop", "drop_low", "drop_high", "gained", "lost", "meets", "bytes", "macs",
    "parameters", "latency_ms", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that was tried.

    `steps`: what was done to the float model, in order. `val_accuracy`, `gained`, `lost`: on val, paired image by image
    with the float model. `drop`: accuracy lost, the mean over `VIEWS` of each image, and `drop_low`, `drop_high`: its
    95 % interval. `meets`: whether the loss is within the budget, and half a standard error below it. `bytes`, `macs`,
    `parameters`: of the ONNX file. `latency_ms`: of one image in ONNX Runtime here, of all candidates in turn.
    `seconds`: it took to make.
    """

    name: str
    steps: tuple[str, ...]
    model: str
    val_accuracy: float
    drop: float
    drop_low: float
    drop_high: float
    gained: int
    lost: int
    meets: bool
    bytes: int
    macs: int
    parameters: int
    latency_ms: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "steps": list(self.steps)}

    def described(self) -> dict[str, Any]:
        """Return the fields as JSON values, but for where the model lay while it was tried."""
        return {name: value for name, value in self.to_json().items() if name != "model"}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Candidate:
        """Return the candidate that `to_json` wrote."""
        return Candidate(**{**document, "steps": tuple(document["steps"])})


def paired_drop(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Return the share of right answers (n,) or (n, views) lost from `before` to `after`, and its 95 % interval.

    Views of an image are averaged, images are what the interval counts. It adds half an image to each kind of flip
    (Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions"), so that no flips
    at all are not taken for certainty.

    >>> import numpy as np
    >>> drop, low, high = paired_drop(np.array([True] * 100), np.array([True] * 98 + [False] * 2))
    >>> round(drop, 3), round(low, 3), round(high, 3)
    (0.02, -0.013, 0.053)
    """
    n = len(before)
    lost = (before.astype(np.float64) - after).reshape(n, -1).mean(axis=1)
    total = n + 2
    middle = float(lost.sum()) / total
    squares = float((lost**2).sum()) + 1.0
    width = _Z * math.sqrt(max(squares - total * middle**2, 0.0)) / total
    return float(lost.mean()), middle - width, middle + width


def is_within(drop: tuple[float, float, float], budget: float) -> bool:
    """Return whether a `paired_drop` is within `budget`, and half a standard error of its interval below it.

    The half is for the choice that follows: the smallest of many candidates is taken, and who is chosen for what was
    measured was measured too well on average. A loss of nothing is always within.

    >>> is_within((0.009, -0.006, 0.024), 0.01), is_within((0.004, -0.011, 0.019), 0.01)
    (False, True)
    """
    loss, low, high = drop
    margin = 0.5 * (high - low) / (2 * _Z)
    return loss <= 0 or loss + margin <= budget + 1e-12


def right_answers(
    model: MergedModel, graph: Path, cache: FeatureCache, *, dataset: str, split: str, views: int = 1
) -> npt.NDArray[Any]:
    """Return which images the exported `graph` of `model` answers rightly, from their bytes: (n, `views`) bool.

    The first view of an image of `split` is the plain one, the others are zoomed. Raises `MissingError` where images
    are gone.
    """
    samples = cache.samples(dataset)
    selection = cache.select(split=split, dataset=dataset)
    session = open_session(graph)
    right = np.zeros((len(selection.indices), views), dtype=np.bool_)
    failures: dict[int, str] = {}
    batches = decoded_batches(
        samples.sources(selection.indices), model.preprocessing, failures=failures, decoder=model.recipe.decoder
    )
    for batch in batches:
        for view in range(views):
            zoomed = [zoom(pixels, view) for pixels in batch.pixels]
            logits = np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in zoomed])
            right[batch.indices, view] = logits.argmax(axis=1) == selection.labels[batch.indices]
    if failures:
        index, reason = next(iter(failures.items()))
        raise MissingError(
            f"all images of split {split!r} must be read again, {len(failures)} cannot be, the first being "
            f"{samples.listing.paths[int(selection.indices[index])]!r} ({reason}): put them back, or build the "
            "cache again"
        )
    return right


def zoom(pixels: npt.NDArray[np.uint8], view: int) -> npt.NDArray[np.uint8]:
    """Return an image (height, width, 3) zoomed by a tenth into its corner `view` of 1 to 4; 0: itself.

    No class is another one for being zoomed, as it may be for being mirrored, and no edge is made up as by moving.
    """
    if view == 0:
        return pixels
    height, width = pixels.shape[:2]
    down, right = height // 10, width // 10
    top, left = down * ((view - 1) // 2), right * ((view - 1) % 2)
    box = (left, top, left + width - right, top + height - down)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR, box=box))


def timed_together(models: Mapping[str, MergedModel]) -> dict[str, float]:
    """Return the latency in ms of one image for each model by name, measured in turn."""
    from featcache.graph.write import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        graphs = [write_onnx(model, Path(folder) / f"{number}.onnx") for number, model in enumerate(models.values())]
        return dict(zip(models, latencies_ms(graphs), strict=True))


def pareto_front(candidates: Sequence[Candidate], *, cost: str) -> list[Candidate]:
    """Return the candidates that no other beats in accuracy on val and in `cost` (``bytes`` or ``latency_ms``)."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (getattr(one, cost), -one.val_accuracy)):
        if not front or candidate.val_accuracy > front[-1].val_accuracy:
            front.append(candidate)
    return front


def write_candidates(candidates: Sequence[Candidate], path: Path) -> None:
    """Write one line of CSV for each candidate, in the order in which they were tried."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS, extrasaction="ignore")
        writer.writeheader()
        for candidate in candidates:
            writer.writerow({**candidate.to_json(), "steps": " + ".join(candidate.steps)})
