"""Write a model as ONNX: the reference graph, from which every device format is made.

The graph is traced with torch's TorchScript exporter, simplified, and named after the model's modules, so that stored
scales and bug reports can refer to its parts. ``README.md`` of this room says why that exporter.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import BackboneError, InputError
from featcache.graph.passes import check, describe, rename, simplify, unshare
from featcache.recipe import preprocessing_to_json
from featcache.system.files import write_atomically
from featcache.system.json import canonical_json

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from featcache.model.merged import MergedModel
    from featcache.model.quantization import Quantization

OPSET = 18
_WRAPPED = "model"  # the attribute of the traced wrapper that holds the model
_MAX_BYTES = 2**31 - 1  # a protobuf message cannot be larger


def write_onnx(
    model: MergedModel,
    path: str | os.PathLike[str],
    *,
    outputs: Sequence[str] = ("logits", "probabilities"),
    metadata: Mapping[str, str] | None = None,
    quantized: bool = True,
    dynamic: bool = True,
) -> Path:
    """Return `path`, where `model` is written as an ONNX file of opset 18; the same model gives the same bytes.

    Its input is ``image`` (N, height, width, 3) uint8 RGB, N dynamic, already resized and cropped, or of texts
    ``input_ids`` (N, L) int64, both dynamic, -1 behind shorter texts; normalisation is part of the graph and batch
    norms are folded into convolutions. Nodes, and what they compute, are named after the module they come from
    (``backbone.network.conv_stem/Conv``), weights as in its state
    (``backbone.network.conv_stem.weight``).

    Parameters
    ----------
    model
        The merged model.
    path
        The file to write; it is replaced whole or not at all.
    outputs
        Any of ``logits``, ``probabilities`` (N, n_classes) and ``features`` (N, n_features), float32.
    metadata
        More ``metadata_props`` beside labels and preprocessing.
    quantized
        Whether a model with stored scales is written with QuantizeLinear/DequantizeLinear pairs, or in floats.
    dynamic
        Whether products whose rows are rounded at run time are written so, or as products with the floats that stored
        integers stand for.

    Returns
    -------
    Path
        Where the file is.

    Raises
    ------
    InputError
        For unknown outputs, or a model above protobuf's 2 GiB.
    BackboneError
        Where the backbone has operations that ONNX has not.
    FormatError
        Where the graph lacks a node or tensor that the stored scales name.
    VerificationError
        Where torch's exporter did not keep the opset or the dynamic batch.

    Examples
    --------
    >>> import onnx
    >>> from featcache.model.directory import load_model
    >>> path = write_onnx(load_model("model"), "classifier.onnx")
    >>> [value.name for value in onnx.load(path).graph.output]
    ['logits', 'probabilities']
    """
    unknown = set(outputs) - {"logits", "probabilities", "features"}
    if unknown or not outputs:
        raise InputError(f"outputs must be among logits, probabilities, features; got {tuple(outputs)!r}")
    proto = simplify(_trace(model, tuple(outputs)))
    unshare(proto)
    rename(proto, prefix=_WRAPPED, modules=[name for name, _ in model.named_modules()])
    if quantized and model.quantization is not None:
        from featcache.graph.qdq import apply_quantization

        proto = apply_quantization(proto, _of_outputs(model.quantization, proto))
        if dynamic and model.quantization.dynamic:
            from featcache.graph.dynamic import expand_products

            expand_products(proto)
    if model.halves:
        from featcache.graph.halves import store_halves

        store_halves(proto)
    described = {
        "labels": canonical_json(list(model.classes)),
        "preprocessing": canonical_json(preprocessing_to_json(model.recipe.preprocessing)),
    }
    describe(proto, {**described, **(metadata or {})})
    check(proto, opset=OPSET, tensors=(model.input.tensor, *outputs))
    if proto.ByteSize() > _MAX_BYTES:
        raise InputError(f"an ONNX file must stay below 2 GiB, got {proto.ByteSize()} bytes: choose a smaller backbone")
    destination = Path(path)
    write_atomically(destination, proto.SerializeToString(deterministic=True))
    return destination


def _trace(model: MergedModel, outputs: tuple[str, ...]) -> onnx.ModelProto:
    import onnx
    import torch

    deployed, example = model.input, model.example(2)
    name = deployed.tensor
    open_axes = {axis: size for axis, size in enumerate(deployed.tensors()[name]["shape"]) if isinstance(size, str)}
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "traced.onnx"
        # the exporter announces its own deprecation; shapes that are fixed are traced as the constants they are
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx")
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*TorchScript-based ONNX export.*")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
        try:
            torch.onnx.export(
                _wrapper(model, outputs),
                (example,),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=list(outputs),
                dynamic_axes={name: open_axes, **{output: {0: "N"} for output in outputs}},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise BackboneError(
                f"the backbone {model.recipe.model!r} must be made of operations that ONNX has, got: "
                f"{str(error).splitlines()[0]}; choose another backbone to export"
            ) from error
        return onnx.load(path)


def _of_outputs(quantization: Quantization, proto: onnx.ModelProto) -> Quantization:
    """Return `quantization` without the head's part where the graph ends at the features."""
    if {value.name for value in proto.graph.output} != {"features"}:
        return quantization

    def of_head(name: str) -> bool:
        return name.startswith(("head.", "head/"))

    present = {name for node in proto.graph.node for name in node.output} | {one.name for one in proto.graph.input}
    # the value that ends the graph is called ``features`` there; as the head's input it is not part of the graph
    return dataclasses.replace(
        quantization,
        nodes=tuple(name for name in quantization.nodes if not of_head(name)),
        dynamic=tuple(name for name in quantization.dynamic if not of_head(name)),
        activations={n: params for n, params in quantization.activations.items() if n in present and not of_head(n)},
        weights={name: params for name, params in quantization.weights.items() if not of_head(name)},
    )


def _wrapper(model: MergedModel, outputs: tuple[str, ...]) -> nn.Module:
    """Return a module of `model` that gives `outputs`; without ``features`` alone, the whole forward is traced."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values = {}
            if "features" in outputs:
                values["features"] = model.features(image)
            if outputs != ("features",):
                values["logits"], values["probabilities"] = model(image)
            return tuple(values[name] for name in outputs)

    return Outputs().eval()
