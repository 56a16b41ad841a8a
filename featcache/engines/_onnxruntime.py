"""ONNX Runtime on the processor: for quantized ONNX files, and for machines without OpenVINO.

A session runs on the calling thread alone, so that callers decode and infer in turn.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from featcache.engines._network_cache import entry_path, identity, load_entry, save_entry
from featcache.engines.interface import Engine, Features, Images
from featcache.engines.precision import refuse_precision
from featcache.engines.session import open_session
from featcache.errors import BackboneError, FormatError, InputError, MissingError
from featcache.recipe import Precision, Preprocessing, Recipe
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone

DEFAULT_BATCH_SIZE = 16
_OPSET = 18


class OnnxRuntimeEngine(Engine):
    """One session. `model`: the bytes of an ONNX file or its path; see `open_onnx_file` for what its input may be."""

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes | Path,
        *,
        precision: Precision,
        batch_size: int,
        outputs: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self._session = open_session(model, threads=1)
        self.version = str(onnxruntime.__version__).partition(".")[0]
        self.precision = precision
        self.batch_size = batch_size
        self.workers = processor_count()
        self._read_input(preprocessing)
        there = [output.name for output in self._session.get_outputs()]
        self._outputs = list(outputs) if outputs is not None else there
        if unknown := sorted(set(self._outputs) - set(there)):
            raise BackboneError(f"outputs must be among those of the graph, {there!r}, got {unknown!r}")
        # Shapes after the first axis are often symbolic: running once says what they are.
        probe = self._infer(np.zeros((batch_size, self.height, self.width, 3), dtype=np.uint8))
        self.columns = tuple((name, rows.shape[1:]) for name, rows in zip(self._outputs, probe, strict=True))
        if any(rows.shape[:1] != (batch_size,) for rows in probe):
            raise BackboneError(f"every output must have one row per image, got {[rows.shape for rows in probe]!r}")

    def _read_input(self, preprocessing: Preprocessing | None) -> None:
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise BackboneError(f"the graph must have one image input, got {[(i.name, i.shape) for i in inputs]!r}")
        shape, kind = inputs[0].shape, inputs[0].type
        self._input = inputs[0].name
        self._channels_first = shape[3] != 3 and shape[1] == 3
        sides = shape[2:4] if self._channels_first else shape[1:3]
        if preprocessing is not None:
            sides = [preprocessing.height, preprocessing.width]
        if not all(isinstance(side, int) for side in sides) or (not self._channels_first and shape[3] != 3):
            raise BackboneError(
                f"the image input must be (N, H, W, 3) or (N, 3, H, W) with H and W known, got {shape!r}; "
                "give preprocessing= where they are open"
            )
        self.height, self.width = (int(side) for side in sides)
        self._normalise: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        if kind == "tensor(float)":
            if preprocessing is None:
                raise InputError("a graph with a float input needs preprocessing= (mean and std), got None")
            mean, std = (np.asarray(values, dtype=np.float64) for values in (preprocessing.mean, preprocessing.std))
            self._normalise = ((1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32))
        elif kind != "tensor(uint8)":
            raise BackboneError(f"the image input must be uint8 or float, got {kind!r}")

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        values: npt.NDArray[Any] = batch
        if self._normalise is not None:
            values = batch * self._normalise[0] - self._normalise[1]
        if self._channels_first:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        results = self._session.run(self._outputs, {self._input: values})
        return tuple(np.asarray(result, dtype=np.float32) for result in results)

    def _release(self) -> None:
        del self._session


def open_onnx_file(
    path: Path,
    *,
    precision: str,
    batch_size: int | None,
    outputs: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> OnnxRuntimeEngine:
    """Return the ONNX file `path` as an engine, ``int8`` where its graph holds quantized tensors, else ``fp32``.

    Raises `MissingError` where there is no file, `FormatError` where it is no ONNX file, `InputError` for a `precision`
    other than its own.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise MissingError(f"the network must be an ONNX file, {str(path)!r} is not a file")
    try:
        nodes = onnx.load(str(path), load_external_data=False).graph.node
    except DecodeError as error:
        raise FormatError(f"the network must be an ONNX file, {str(path)!r} is not one") from error
    file_precision: Precision = "int8" if any("QuantizeLinear" in node.op_type for node in nodes) else "fp32"
    if precision not in ("auto", file_precision):
        raise InputError(f"precision must be that of {str(path)!r}, which is {file_precision!r}, got {precision!r}")
    return OnnxRuntimeEngine(
        path,
        precision=file_precision,
        batch_size=batch_size or DEFAULT_BATCH_SIZE,
        outputs=outputs,
        preprocessing=preprocessing,
    )


def open_backbone(backbone: Backbone, *, precision: str, batch_size: int | None, cached: bool) -> OnnxRuntimeEngine:
    """Return `backbone` exported to ONNX and loaded; fp32 is the only precision ONNX Runtime has for it here."""
    from featcache.backbone.backbone import weights_digest

    if precision not in ("auto", "fp32"):
        raise refuse_precision(precision, engine="onnxruntime", why="it computes a float backbone in fp32 only")
    batch_size = batch_size or DEFAULT_BATCH_SIZE
    cached = cached and backbone.model_digest is None and weights_digest(backbone.network) == backbone.weights_sha256
    path = entry_path(_key(identity(backbone), batch_size))
    entry = load_entry(path) if cached else None
    model = entry[1] if entry is not None else _exported(backbone, batch_size)
    engine = OnnxRuntimeEngine(model, precision="fp32", batch_size=batch_size, outputs=backbone.outputs)
    if cached and entry is None:
        save_entry(path, {"outputs": list(backbone.outputs)}, model)
    return engine


def open_recipe(recipe: Recipe) -> OnnxRuntimeEngine | None:
    """Return the engine of `recipe` from the cache of networks, or None."""
    if recipe.engine_version != str(onnxruntime.__version__).partition(".")[0] or recipe.precision != "fp32":
        return None
    entry = load_entry(entry_path(_key(identity(recipe), DEFAULT_BATCH_SIZE)))
    if entry is None:
        return None
    return OnnxRuntimeEngine(entry[1], precision="fp32", batch_size=DEFAULT_BATCH_SIZE, outputs=recipe.outputs)


def _exported(backbone: Backbone, batch_size: int) -> bytes:
    """Return the ONNX bytes of the whole graph, uint8 images in, with a fixed batch size."""
    import torch

    from featcache.backbone.backbone import ImageNetwork

    size = backbone.preprocessing
    example = torch.zeros(batch_size, size.height, size.width, 3, dtype=torch.uint8)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the TorchScript exporter is deprecated; it is also four times quicker
        torch.onnx.export(
            ImageNetwork(backbone),
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=list(backbone.outputs),
        )
    return buffer.getvalue()


def _key(network: dict[str, Any], batch_size: int) -> dict[str, Any]:
    import importlib.metadata

    return {
        **network,
        "engine": "onnxruntime",
        "exporter": importlib.metadata.version("torch"),
        "opset": _OPSET,
        "batch_size": batch_size,
    }
