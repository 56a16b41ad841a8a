"""What `quantize` does last, whatever it made of the numbers: write the MODEL, time its file, say what came of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from featcache.compression.measurement import compressed_bytes, integer_share, latencies_ms, zero_share
from featcache.compression.refitting import AccuracyComparison, Source
from featcache.compression.result import CompressResult
from featcache.engines.session import open_session
from featcache.graph.cost import node_macs
from featcache.graph.write import write_onnx
from featcache.model.directory import save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel
from featcache.model.reference import logits_of_images
from featcache.system.processor import processor_has_int8, processor_name

_SHOWN = {"int8": "INT8", "int8-dynamic": "INT8", "fp16": "fp16"}


@dataclass(frozen=True, slots=True)
class Shipping:
    """Where a quantized model goes, and what was asked of it. `folder`: for files on the way."""

    folder: Path
    out: str | os.PathLike[str]
    head_precision: str
    processor: str
    overwrite: bool


def ship(
    source: Source,
    final: MergedModel,
    shipping: Shipping,
    comparison: AccuracyComparison,
    *,
    precision: str,
    head_precision: str,
    settings: Mapping[str, Any],
    refit_kept: bool,
    notes: Sequence[str],
    **found: Any,
) -> CompressResult:
    """Return what became of `source`'s model, which is `final` now, and write it.

    `head_precision`: what the head has in the end. `found`: fields of the result that tell what the numbers cost.
    """
    folder = shipping.folder
    graphs = [write_onnx(source.model, folder / "before.onnx"), write_onnx(final, folder / "after.onnx")]
    times = latencies_ms(graphs, source.model.input.example())
    integer, convolutions = integer_share(str(graphs[1]))
    macs = sum(node_macs(onnx.load(str(graphs[0]))).values())
    path = save_model(final, shipping.out, golden=_golden(source.golden, final, folder), overwrite=shipping.overwrite)
    return CompressResult(
        model=str(path),
        method=precision,
        amount=None,
        parameters=final.parameter_count(),
        macs=macs,
        macs_before=macs,
        sparsity=zero_share(final),
        bytes_before=graphs[0].stat().st_size,
        bytes_after=graphs[1].stat().st_size,
        compressed_bytes_before=compressed_bytes(graphs[0]),
        compressed_bytes_after=compressed_bytes(graphs[1]),
        **dataclasses.asdict(comparison),
        latency_ms_before=times[0],
        latency_ms_after=times[1],
        integer_convolutions=integer,
        convolutions=convolutions,
        head_precision=head_precision,
        weights=final.recipe.weights,
        random_weights=final.recipe.random_weights,
        settings=settings,
        refit_kept=refit_kept,
        notes=(*notes, *speed_notes(*times, precision=precision, processor=shipping.processor)),
        **found,
    )


def speed_notes(before: float, after: float, *, precision: str, processor: str) -> list[str]:
    """Return what must be said of milliseconds measured here, and of the processor they were measured on."""
    notes = []
    if after > before:
        notes.append(
            f"{_SHOWN[precision]} is slower here: {after:.3g} ms against {before:.3g} ms in floats (one input, ONNX "
            f"Runtime, {processor_name()}); it is smaller, not faster"
        )
    if precision != "fp16" and processor == "vnni" and not processor_has_int8():
        notes.append(
            f"the model is for processors with VNNI, which {processor_name()} has not: sums saturate here, and "
            "accuracy and speed are those of this processor; --processor any answers alike everywhere"
        )
    return notes


def _golden(golden: Golden | None, model: MergedModel, folder: Path) -> Golden | None:
    """Return the golden images with the logits of what is stored, computed in floats on any machine alike."""
    if golden is None:
        return None
    if model.quantization is None:
        return dataclasses.replace(golden, computed_by="torch fp32", logits=logits_of_images(model, golden.images))
    graph = write_onnx(model, folder / "reference.onnx", dynamic=False)
    session = open_session(graph, optimise=False)
    deployed = model.input
    batches = [deployed.stack([deployed.prepare(data)]) for data in golden.images]
    logits = np.concatenate([session.run(["logits"], {deployed.tensor: batch})[0] for batch in batches])
    return dataclasses.replace(golden, computed_by="the stored scales in float32", logits=logits)
