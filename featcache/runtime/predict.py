"""`predict`: what a bundle, a model or a head sees in images. A bad image is an entry with a reason, not a crash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.errors import InputError, MissingError
from featcache.heads.base import sigmoid, softmax
from featcache.heads.unknown import UnknownRule
from featcache.runtime.bundle import is_bundle
from featcache.runtime.sources import open_classifier
from featcache.runtime.stream import read_file, stream
from featcache.samples import printable
from featcache.scan import IMAGE_EXTENSIONS, scan


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is seen in one image.

    `label`, `probability`: the first class (for multi-label: the likeliest; for regression None). `top`: (label,
    probability) of the likeliest classes, for regression (target, value). `unknown`: the model's rule says that the
    image is of no known class. `reason`: why there is no prediction, else None.
    """

    path: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    unknown: bool = False
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values: dict[str, Any] = {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "top": [{"label": label, "probability": value} for label, value in self.top],
        }
        if self.unknown:
            values["unknown"] = True
        if self.reason is not None:
            values["reason"] = self.reason
        return values


def predict(
    bundle_or_model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    top: int = 5,
    format: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    split: str = "test",
    threads: int | None = None,
) -> list[Prediction]:
    """Return one prediction per image, in the order of the images.

    `images`: an image file, a folder, a CSV, or several image files. A BUNDLE runs without torch, from the files' bytes
    through its own preprocessing. With a HEAD, `cache` names the cache it was trained on and nothing is decoded: the
    stored features of `split` are used. `top`: how many classes to list.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, got {top!r}")
    if cache is not None and not is_bundle(bundle_or_model):
        return _from_cache(bundle_or_model, cache, top=top, dataset=dataset, split=split)
    if images is None:
        raise InputError("images must be given: a file, a folder or a CSV")
    paths, names = _image_files(images)
    with open_classifier(bundle_or_model, format=format, threads=threads) as classifier:
        failures: dict[int, str] = {}
        found: dict[int, Prediction] = {}
        sources = [partial(read_file, path) for path in paths]
        with tqdm(total=len(paths), desc="predict", unit="image", disable=None) as bar:
            for batch in stream(sources, classifier.preprocessing, failures=failures):
                logits = classifier.runner.run(batch.pixels)
                indices = batch.indices.tolist()
                made = describe([names[i] for i in indices], logits, classifier.classes, classifier.task,
                                top=top, unknown=classifier.unknown)  # fmt: skip
                found.update(zip(indices, made, strict=True))
                bar.update(len(indices))
    for index, reason in failures.items():
        found[index] = Prediction(names[index], None, None, (), reason=reason)
    return [found[index] for index in range(len(paths))]


def describe(
    names: Sequence[str],
    logits: npt.NDArray[np.float32],
    classes: tuple[str, ...],
    task: str,
    *,
    top: int,
    unknown: UnknownRule | None = None,
) -> list[Prediction]:
    """Return the predictions that logits (n, n_classes) of the images called `names` amount to."""
    if task == "regression":
        rows = [tuple(zip(classes, map(float, row), strict=True)) for row in logits]
        return [Prediction(name, None, None, row) for name, row in zip(names, rows, strict=True)]
    probabilities = softmax(logits) if task == "classification" else sigmoid(logits)
    strange = unknown.is_unknown(logits) if unknown is not None else np.zeros(len(logits), dtype=bool)
    found = []
    for name, row, odd in zip(names, probabilities, strange.tolist(), strict=True):
        order = np.argsort(-row, kind="stable")[:top].tolist()
        likely = tuple((classes[i], float(row[i])) for i in order)
        found.append(Prediction(name, likely[0][0], likely[0][1], likely, odd))
    return found


def _image_files(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> tuple[list[str], list[str]]:
    """Return the paths to open and the names to report, in order; `MissingError` for a file that does not exist."""
    if not isinstance(images, (str, os.PathLike)):
        if not images:
            raise InputError("images must hold at least one image file, got an empty list")
        pairs = [_image_files(image) for image in images]
        return [path for paths, _ in pairs for path in paths], [name for _, names in pairs for name in names]
    path = os.fspath(images)
    if os.path.isdir(path) or path.lower().endswith(".csv"):
        listing = scan(path)
        return [listing.absolute(i) for i in range(len(listing))], [printable(name) for name in listing.paths]
    if not os.path.exists(path):
        raise MissingError(f"images must exist; {path!r} does not")
    if Path(path).suffix.lower().removeprefix(".") not in IMAGE_EXTENSIONS:
        raise InputError(f"images must be an image file, a folder or a .csv file, got {path!r}")
    return [path], [printable(path)]


def _from_cache(
    head: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    *,
    top: int,
    dataset: str | None,
    split: str,
) -> list[Prediction]:
    """Return predictions of a HEAD on stored features; no image is read and no backbone run."""
    from featcache.cache import open_cache
    from featcache.heads import load_head

    fitted = load_head(head)
    with open_cache(Path(cache)) as opened:
        if fitted.fingerprint not in (None, opened.fingerprint):
            raise InputError(
                f"the head must have been trained on the cache {os.fspath(cache)!r}; their fingerprints differ: "
                "name the cache it was trained on"
            )
        selection = opened.select(split=split, dataset=dataset, labelled=False)
        if not len(selection.rows):
            raise InputError(f"the cache {os.fspath(cache)!r} must have rows of the split {split!r}, it has none")
        samples = opened.samples(dataset)
        names = [printable(samples.paths[i]) for i in selection.indices.tolist()]
        outputs = list(dict.fromkeys(column.partition("@")[0] for column in fitted.columns))
        logits = fitted.predict_logits(opened.gather(selection.rows, output=outputs))
    return describe(names, logits, fitted.classes, fitted.task, top=top, unknown=fitted.unknown)
