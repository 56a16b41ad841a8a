"""ONNX: the reference device file itself, run by ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import FormatError
from featcache.formats.interface import (
    DYNAMIC,
    HALVES,
    Converted,
    ModelFacts,
    Runner,
    Target,
    classifier_tensors,
    numbers_of,
)
from featcache.system.files import write_atomically


class OnnxTarget(Target):
    """The ONNX file itself, run by ONNX Runtime."""

    name = "onnx"
    needs = "pip install 'onnxruntime>=1.22'"

    def available(self) -> str | None:
        """Return why ONNX Runtime cannot be used here, or None."""
        return None if importlib.util.find_spec("onnxruntime") else "the package onnxruntime is not installed"

    def version(self) -> str:
        """Return ONNX Runtime's version."""
        return f"onnxruntime {importlib.metadata.version('onnxruntime')}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Copy the file as ``model.onnx``: the plain graph, not one that a runtime optimised for its processor."""
        self.require()
        destination = folder / "model.onnx"
        write_atomically(destination, _with_integer_products(onnx_path) if facts.dynamic else onnx_path.read_bytes())
        return Converted(
            (destination,), classifier_tensors(facts), numbers_of(facts, integers=None, halves=HALVES, dynamic=DYNAMIC)
        )

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the session."""
        self.require()
        return _OnnxRunner(files[0], threads)


def _with_integer_products(path: Path) -> bytes:
    """Return the ONNX file at `path`, the rows that its stored integers are multiplied with rounded at run time."""
    import onnx

    from featcache.graph.dynamic import expand_products

    proto = onnx.load(str(path))
    expand_products(proto)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def open_unoptimised(path: Path, *, threads: int) -> Runner:
    """Return the graph run node by node as it is written: stored scales computed in float32, no integers."""
    return _OnnxRunner(path, threads, optimise=False)


class _OnnxRunner(Runner):
    concurrent = True

    def __init__(self, path: Path, threads: int, *, optimise: bool = True) -> None:
        from featcache.engines.session import open_session

        self._name = path.name
        self._session = open_session(path, threads=threads, optimise=optimise, spinning=True)
        self._input = self._session.get_inputs()[0].name

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        from featcache.engines.session import REFUSALS, first_line

        try:
            logits: npt.NDArray[np.float32] = self._session.run(["logits"], {self._input: images})[0]
        except (*REFUSALS, ValueError) as error:  # a ValueError: it has no such input or output
            said = first_line(error)
            raise FormatError(
                f"{self._name!r} must give logits of images {images.shape[1:]!r}, ONNX Runtime says: {said}"
            ) from error
        return logits

    def close(self) -> None:
        """Drop the session."""
        del self._session
