"""What `predict`, `evaluate` and `bench` can run: a BUNDLE (without torch) or a MODEL (with it)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import CorruptError, InputError, MissingError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.formats.interface import Runner
from featcache.heads.unknown import UnknownRule
from featcache.recipe import Preprocessing
from featcache.runtime.bundle import is_bundle, open_bundle

_MODEL_FILE = "model.json"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A loaded model and what stands around it; use as a context manager. `format`: ``torch`` for a MODEL."""

    runner: Runner
    format: str
    classes: tuple[str, ...]
    task: str
    unknown: UnknownRule | None
    input: DeployedInput

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the input; `InputError` where the inputs are of another kind."""
        if not isinstance(self.input.preprocessing, Preprocessing):
            raise InputError(f"this needs a classifier of images, got one of {self.input.noun}s: use predict")
        return self.input.preprocessing

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits (n, n_classes) of prepared `images` or texts.

        Raises `CorruptError` where the model does not have one per class.
        """
        logits = self.runner.run(images)
        if logits.shape != (len(images), len(self.classes)):
            raise CorruptError(
                f"the {self.format} file must give a logit for each of its {len(self.classes)} labels, it gave "
                f"{logits.shape!r} for {len(images)} images: export the bundle again"
            )
        return logits

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.close()


def is_model(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is a MODEL directory."""
    return (Path(path) / _MODEL_FILE).is_file()


def open_classifier(
    path: str | os.PathLike[str], *, format: str | None = None, threads: int | None = None
) -> Classifier:
    """Return the classifier in the BUNDLE or MODEL at `path`.

    Raises `MissingError` where there is neither, `InputError` for a format beside a MODEL or one that is not there.
    """
    if is_bundle(path):
        bundle = open_bundle(path)
        named = bundle.format_named(format)
        runner = bundle.open(named, threads=threads)
        return Classifier(runner, named, bundle.classes, bundle.task, bundle.unknown, bundle.input)
    if is_model(path):
        if format not in (None, "torch"):
            raise InputError(f"a MODEL is run by torch, got the format {format!r}: export it, then name the bundle")
        return _open_model(path)
    raise MissingError(f"{os.fspath(path)!r} must be a bundle or a model: make one with 'featcache export' or 'merge'")


def model_input(path: str | os.PathLike[str]) -> str:
    """Return the input kind of the MODEL at `path`; raises as `featcache.model.directory.read_model_json`."""
    from featcache.model.description import read_model_json

    return str(read_model_json(path)["preprocessing"].get("input", Preprocessing.input))


class TorchRunner(Runner):
    """A MergedModel, run as it is by torch in float32."""

    def __init__(self, model: object) -> None:
        self._model = model

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        import torch

        assert isinstance(self._model, torch.nn.Module)
        with torch.inference_mode():
            return np.asarray(self._model(torch.from_numpy(images))[0].numpy())

    def close(self) -> None:
        """Drop the model."""
        self._model = None


def _open_model(path: str | os.PathLike[str]) -> Classifier:
    from featcache.model.directory import load_model

    model = load_model(path)
    fitted = model.fitted_head
    return Classifier(TorchRunner(model), "torch", model.classes, fitted.task, fitted.unknown, model.input)
