"""`evaluate`: how often a bundle is right, from image files through its own preprocessing and runtime. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.datasets.labelled import LabelledImages, labelled_images
from featcache.errors import InputError
from featcache.extract.inputs.registry import find_input
from featcache.heads.base import softmax
from featcache.runtime.classifier import open_classifier
from featcache.runtime.logits import batches_of_logits, batches_of_logits_from_cluster
from featcache.system.cluster import ClusterSettings


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was given a wrong class. `index`: into the evaluated images; `probability`: of `predicted`."""

    index: int
    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How right a model is on `n` labelled images.

    `accuracy`: share of right first classes (for multi-label of right yes/no decisions, with `exact` the share of
    images with every decision right; None for regression, which has `mean_absolute_error` instead). `per_class`: label
    → n, correct, accuracy (None without an image), or for multi-label n, precision, recall. `confusion`: row = true
    class, column = given class, in the order of `classes`; None unless classification. `unlabelled`: images passed
    over, of no class or one the model does not know. `failures`: (path, reason). `mistakes`: every wrong image, surest
    first. `notes`: one line each, how the images were read where that is not plain.
    """

    format: str
    split: str | None
    classes: tuple[str, ...]
    accuracy: float | None
    n: int
    per_class: Mapping[str, Mapping[str, float | int | None]]
    confusion: tuple[tuple[int, ...], ...] | None
    exact: float | None = None
    mean_absolute_error: float | None = None
    unlabelled: int = 0
    unknown_classes: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, mistakes left out."""
        return {
            "format": self.format,
            "split": self.split,
            "classes": list(self.classes),
            "accuracy": self.accuracy,
            "n": self.n,
            "per_class": {label: dict(values) for label, values in self.per_class.items()},
            "confusion": None if self.confusion is None else [list(row) for row in self.confusion],
            "exact": self.exact,
            "mean_absolute_error": self.mean_absolute_error,
            "unlabelled": self.unlabelled,
            "unknown_classes": list(self.unknown_classes),
            "failed": len(self.failures),
            "failures": [{"path": path, "reason": reason} for path, reason in self.failures],
            "notes": list(self.notes),
        }


def evaluate(
    bundle: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    format: str | None = None,
    split: str | None = None,
    threads: int | None = None,
    ray: str | None = None,
    actors: int | None = None,
    gpus_per_actor: float = 0.0,
    input_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return how right a BUNDLE or MODEL is on labelled images.

    Labels are matched by class name. Images that cannot be decoded are recorded and not counted.

    Parameters
    ----------
    bundle
        A BUNDLE, which runs without torch, or a MODEL.
    images
        A folder or a CSV.
    format
        Which of the bundle's device files runs; None: its first.
    split
        Of a data set with splits, the one to evaluate on; None: ``test``. One without splits is evaluated whole.
    threads
        How many compute; None: all processors.
    ray, actors, gpus_per_actor
        The Ray cluster that reads and computes, and its workers, as for `predict`.
    input_options
        How the inputs are read: of texts ``text_column``, ``label_column``.

    Returns
    -------
    Evaluation
        Accuracy, figures per class, the confusion matrix, the images that could not be read.

    Raises
    ------
    InputError
        Where no image has both a label of the model and pixels, and for a format that the bundle does not hold.
    MissingError
        Where there is no such bundle, model or data set.
    ClusterError
        Where the cluster loses what it cannot compute again.

    Examples
    --------
    >>> from featcache import evaluate
    >>> evaluation = evaluate("bundle", "photos")
    >>> evaluation.n, evaluation.accuracy
    (24, 1.0)
    """
    settings = ClusterSettings.of(ray, actors, gpus_per_actor)
    with open_classifier(bundle, format=format, threads=threads) as classifier:
        kind = find_input(classifier.input.preprocessing.input)
        kind.refuse_options(input_options or {})
        chosen = labelled_images(
            images, classes=classifier.classes, task=classifier.task, split=split,
            scan=partial(kind.scan, options=input_options),
        )  # fmt: skip
        files = chosen.sources()
        failures: dict[int, str] = {}
        logits = np.zeros((len(chosen), len(classifier.classes)), dtype=np.float32)
        with tqdm(total=len(chosen), desc="evaluate", unit=classifier.input.noun, disable=None) as bar:
            batches = batches_of_logits(classifier, files, failures=failures)
            if settings is not None:
                batches = batches_of_logits_from_cluster(
                    bundle, files, format=format, settings=settings, failures=failures
                )
            for indices, rows in batches:
                logits[indices] = rows
                bar.update(len(indices))
        return score(
            chosen, logits, failures, classes=classifier.classes, task=classifier.task, format=classifier.format
        )


def score(
    chosen: LabelledImages,
    logits: npt.NDArray[np.float32],
    failures: Mapping[int, str],
    *,
    classes: tuple[str, ...],
    task: str,
    format: str,
) -> Evaluation:
    """Return the evaluation of logits (n, n_classes) of `chosen`; rows in `failures` do not count.

    Raises `InputError` where no image has both a label and pixels.
    """
    decoded = np.ones(len(chosen), dtype=bool)
    decoded[list(failures)] = False
    labelled = chosen.labels >= 0
    used = np.flatnonzero(decoded & labelled)
    if not len(used):
        reasons = sorted(set(failures.values()))
        where = "" if chosen.split is None else f" in the split {chosen.split!r}"
        others = "".join(f"name --split {name}, or " for name in chosen.labelled_splits[:1])
        advice = f": {others if chosen.split else ''}put the images into folders named after their classes"
        raise InputError(
            f"at least one image must have a label of the model and decode, got none of {len(chosen)}{where}"
            + (f" ({reasons[0]})" if reasons else advice)
        )
    common: dict[str, Any] = {
        "format": format,
        "split": chosen.split,
        "classes": classes,
        "n": len(used),
        "unlabelled": int((decoded & ~labelled).sum()),
        "unknown_classes": chosen.unknown_classes,
        "failures": tuple((chosen.names[index], reason) for index, reason in sorted(failures.items())),
        "notes": chosen.notes,
    }
    if task == "classification":
        return Evaluation(**common, **_classification(chosen, logits, used, classes))
    assert chosen.targets is not None
    if task == "multilabel":
        return Evaluation(**common, **_multilabel(logits[used], chosen.targets[used], classes))
    errors = np.abs(logits[used].astype(np.float64) - chosen.targets[used])
    per_target = {
        name: {"n": len(used), "mean_absolute_error": float(value)}
        for name, value in zip(classes, errors.mean(axis=0), strict=True)
    }
    return Evaluation(
        **common, accuracy=None, per_class=per_target, confusion=None, mean_absolute_error=float(errors.mean())
    )


def _classification(
    chosen: LabelledImages, logits: npt.NDArray[np.float32], used: npt.NDArray[np.int64], classes: tuple[str, ...]
) -> dict[str, Any]:
    predicted, actual = logits[used].argmax(axis=1), chosen.labels[used]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (actual, predicted), 1)
    totals, right = confusion.sum(axis=1), confusion.diagonal()
    per_class = {
        label: {
            "n": int(totals[i]),
            "correct": int(right[i]),
            "accuracy": float(right[i] / totals[i]) if totals[i] else None,
        }
        for i, label in enumerate(classes)
    }
    wrong = np.flatnonzero(predicted != actual)
    probabilities = softmax(logits[used][wrong])
    confidence = probabilities[np.arange(len(wrong)), predicted[wrong]]
    mistakes = tuple(
        Mistake(
            int(used[wrong[k]]),
            chosen.names[used[wrong[k]]],
            classes[actual[wrong[k]]],
            classes[predicted[wrong[k]]],
            float(confidence[k]),
        )
        for k in np.argsort(-confidence, kind="stable").tolist()
    )
    return {
        "accuracy": float((predicted == actual).mean()),
        "per_class": per_class,
        "confusion": tuple(tuple(row) for row in confusion.tolist()),
        "mistakes": mistakes,
    }


def _multilabel(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.float32], classes: tuple[str, ...]
) -> dict[str, Any]:
    predicted, actual = logits > 0, targets > 0.5
    hits, predicted_counts, actual_counts = (predicted & actual).sum(axis=0), predicted.sum(axis=0), actual.sum(axis=0)
    per_class = {
        label: {
            "n": int(actual_counts[i]),
            "precision": float(hits[i] / predicted_counts[i]) if predicted_counts[i] else None,
            "recall": float(hits[i] / actual_counts[i]) if actual_counts[i] else None,
        }
        for i, label in enumerate(classes)
    }
    correct = predicted == actual
    return {
        "accuracy": float(correct.mean()),
        "exact": float(correct.all(axis=1).mean()),
        "per_class": per_class,
        "confusion": None,
    }
