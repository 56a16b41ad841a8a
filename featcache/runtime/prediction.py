"""`predict`: what a bundle, a model or a head sees in images. A bad image is an entry with a reason, not a crash."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.errors import InputError
from featcache.extract.inputs.interface import Input
from featcache.extract.inputs.registry import IMAGE, find_input
from featcache.heads.base import sigmoid, softmax
from featcache.heads.unknown import UnknownRule
from featcache.runtime.bundle import is_bundle, open_bundle
from featcache.runtime.classifier import Classifier, is_model, model_input, open_classifier
from featcache.runtime.logits import IndexedLogits, batches_of_logits, batches_of_logits_from_cluster
from featcache.system.cluster import ClusterSettings
from featcache.system.sources.batches import Source


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is seen in one image.

    `label`, `probability`: the first class (for multi-label: the likeliest; for regression None). `top`: (label,
    probability) of the likeliest classes, for regression (target, value). `unknown`: the model's rule says that the
    image is of no known class. `reason`: why there is no prediction, else None. `cached`: it came from stored features.
    """

    path: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    unknown: bool = False
    reason: str | None = None
    cached: bool = False

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
        if self.cached:
            values["cached"] = True
        return values


def predict(
    bundle_or_model: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    format: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 0.0,
    input_options: Mapping[str, Any] | None = None,
) -> list[Prediction]:
    """Return one prediction per image (or text), in the order of the images.

    An image that cannot be read is an entry with a reason.

    Parameters
    ----------
    bundle_or_model
        A BUNDLE, which runs without torch, from the files' bytes through its own preprocessing; a MODEL; with `cache`
        also a HEAD.
    images
        An image file, a folder, a CSV, files of many images, each also by URL (see `featcache.datasets.scan.scan`), or
        several of these. Of a classifier of texts: a text itself, a table, a ``.txt`` file with a text in each line, a
        folder.
    top
        How many classes to list.
    format
        Which of the bundle's device files runs; None: its first.
    cache
        The one that the head was trained on: images whose bytes it knows are answered from their stored features and
        never decoded. A MODEL computes the others, a HEAD, which has no backbone, gives a reason.
    threads
        How many compute; None: all processors.
    ray
        The Ray cluster that reads and computes: ``HOST:PORT`` of its head, ``auto``, or ``local`` for one on this
        machine alone. The images and the model must be where its machines can read them.
    actors
        How many workers in the cluster compute at most; None: as many as it has room for.
    gpus_per_actor
        GPUs of each; 0: they compute on processors.
    input_options
        How the inputs are read: of texts ``text_column``.

    Returns
    -------
    list[Prediction]
        Label, probability and the `top` classes of each image, or the reason why it is none.

    Raises
    ------
    InputError
        For `top` below 1, a cache beside a bundle, a format that the bundle does not hold, and a folder without images.
    MissingError
        Where there is no such bundle, model or image.
    ClusterError
        Where the cluster loses what it cannot compute again.

    Examples
    --------
    >>> from featcache import predict
    >>> [prediction] = predict("bundle", "photos/cat/00.jpg")
    >>> prediction.label, len(prediction.top)
    ('cat', 2)
    """
    if top < 1:
        raise InputError(f"top must be at least 1, got {top!r}")
    settings = ClusterSettings.of(ray, actors, gpus_per_actor)
    kind = input_kind(bundle_or_model, cache=cache)
    kind.refuse_options(input_options or {})
    sources, names = _sources(images, kind, input_options)
    predictions: dict[int, Prediction] = {}
    missing = list(range(len(sources)))
    if cache is not None:
        if is_bundle(bundle_or_model):
            raise InputError(
                f"a cache can only serve a MODEL or a HEAD; {os.fspath(bundle_or_model)!r} is a bundle, which computes "
                "from pixels: leave the cache out, or name the model it was exported from"
            )
        from featcache.runtime.cached import cached_logits, load_fitted

        fitted = load_fitted(bundle_or_model)
        known, logits = cached_logits(fitted, sources, cache)
        from_cache = describe(
            [names[i] for i in known], logits, fitted.classes, fitted.task, top=top, unknown=fitted.unknown
        )
        predictions.update(zip(known, (replace(one, cached=True) for one in from_cache), strict=True))
        missing = [index for index in missing if index not in predictions]
        if not is_model(bundle_or_model):
            reason = "not in the cache, and a head has no backbone to compute its features"
            predictions.update({index: Prediction(names[index], None, None, (), reason=reason) for index in missing})
            missing = []
    if missing:
        with open_classifier(bundle_or_model, format=format, threads=threads) as classifier:
            files = [sources[index] for index in missing]
            failures: dict[int, str] = {}
            batches = batches_of_logits(classifier, files, failures=failures)
            if settings is not None:
                batches = batches_of_logits_from_cluster(
                    bundle_or_model, files, format=format, settings=settings, failures=failures
                )
            predictions.update(_described(classifier, batches, names, missing, top=top))
        for position, reason in failures.items():
            name = names[missing[position]]
            predictions[missing[position]] = Prediction(name, None, None, (), reason=reason)
    return [predictions[index] for index in range(len(sources))]


def _described(
    classifier: Classifier, batches: Iterable[IndexedLogits], names: list[str], wanted: list[int], *, top: int
) -> dict[int, Prediction]:
    """Return what the `batches` of the images at `wanted` amount to, by index."""
    predictions: dict[int, Prediction] = {}
    with tqdm(total=len(wanted), desc="predict", unit=classifier.input.noun, disable=None) as bar:
        for positions, logits in batches:
            indices = [wanted[position] for position in positions.tolist()]
            batch_predictions = describe(
                [names[index] for index in indices],
                logits,
                classifier.classes,
                classifier.task,
                top=top,
                unknown=classifier.unknown,
            )
            predictions.update(zip(indices, batch_predictions, strict=True))
            bar.update(len(indices))
    return predictions


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
    predictions = []
    for name, row, odd in zip(names, probabilities, strange.tolist(), strict=True):
        order = np.argsort(-row, kind="stable")[:top].tolist()
        likely = tuple((classes[i], float(row[i])) for i in order)
        predictions.append(Prediction(name, likely[0][0], likely[0][1], likely, odd))
    return predictions


def _sources(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], kind: Input, options: Mapping[str, Any] | None
) -> tuple[list[Source], list[str]]:
    """Return what reads each input and the names to report, in order; `MissingError` for a file that does not exist."""
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    if not given:
        raise InputError(f"{kind.noun}s must hold at least one {kind.noun}, got an empty list")
    named = [one for each in given for one in kind.named(each, options)]
    return [source for source, _ in named], [name for _, name in named]


def input_kind(path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None) -> Input:
    """Return the kind of what the BUNDLE, MODEL or HEAD at `path` takes; of a HEAD, which does not say, its cache's."""
    if is_bundle(path):
        return find_input(open_bundle(path).preprocessing.input)
    if is_model(path):
        return find_input(model_input(path))
    if cache is not None:
        from featcache.cache import open_cache

        with open_cache(cache) as opened:
            return find_input(opened.recipe.input)
    return find_input(IMAGE)
