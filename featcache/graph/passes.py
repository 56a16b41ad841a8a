"""Passes over an ONNX graph: fold what is constant, name things after the modules they come from, check the result."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import VerificationError

if TYPE_CHECKING:
    import onnx

_ROLES = {1: "weight", 2: "bias"}  # of the inputs of these operations
_WITH_ROLES = ("Conv", "Gemm", "LayerNormalization")
USUAL_TOKENS = 32  # of a text, where work is counted
_LARGE = 2**14  # numbers of a weight that stands aside while its graph is simplified


def simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with constants folded, so that the shape arithmetic of a fixed input size is gone."""
    return _slim(proto, weights_aside=has_open_length(proto))


def fixed_batch(proto: onnx.ModelProto, *, tokens: int = USUAL_TOKENS) -> onnx.ModelProto:
    """Return the graph for one image, or one text of `tokens`, at a time: its shape arithmetic is folded away.

    Nodes and values keep their names where they remain.
    """
    return _slim(with_batch_of_one(proto, tokens=tokens), weights_aside=has_open_length(proto))


def _slim(proto: onnx.ModelProto, *, weights_aside: bool) -> onnx.ModelProto:
    """Return the graph simplified; `weights_aside`: as if large weights were inputs, which changes no text encoder's.

    Each of its many looks at shapes copies the whole file twice: of 90 MB, six times as long as the rest of it takes.
    What it would do with a weight's values, to fold a neighbour into it, needs products of a fixed length. A job asks
    for the same graph again and again, with other large weights or none: what is left of it is simplified once.
    """
    import onnx
    import onnxslim

    if not weights_aside:
        slim: onnx.ModelProto = onnxslim.slim(proto)
        return slim
    large = {tensor.name: tensor for tensor in proto.graph.initializer if _is_large(tensor)}
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    for field, entries in proto.graph.ListFields():
        if field.name == "initializer":
            light.graph.initializer.extend(tensor for tensor in entries if tensor.name not in large)
        elif field.is_repeated:
            getattr(light.graph, field.name).extend(entries)
        else:
            setattr(light.graph, field.name, entries)
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large.values()
    )
    slim = onnx.ModelProto.FromString(_slimmed(light.SerializeToString(deterministic=True)))
    inputs = [value for value in slim.graph.input if value.name not in large]
    del slim.graph.input[:]
    slim.graph.input.extend(inputs)
    small = {tensor.name: tensor for tensor in slim.graph.initializer}
    used = dict.fromkeys(name for node in slim.graph.node for name in node.input if name in large or name in small)
    tensors = [large[name] if name in large else small[name] for name in used]
    del slim.graph.initializer[:]
    slim.graph.initializer.extend(tensors)
    return slim


@functools.lru_cache(maxsize=8)
def _slimmed(light: bytes) -> bytes:
    """Return an ONNX file without its large weights simplified."""
    import onnx
    import onnxslim

    slim: bytes = onnxslim.slim(onnx.ModelProto.FromString(light)).SerializeToString()
    return slim


def _is_large(tensor: onnx.TensorProto) -> bool:
    import onnx

    return tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= _LARGE


def with_batch_of_one(proto: onnx.ModelProto, *, tokens: int = USUAL_TOKENS) -> onnx.ModelProto:
    """Return a copy of the graph of one image, or of one text of `tokens`, and nothing else is changed."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for place, size in enumerate(value.type.tensor_type.shape.dim):
            if place == 0 or size.dim_param:
                size.ClearField("dim_param")
                size.dim_value = 1 if place == 0 else tokens
    return fixed


def has_open_length(proto: onnx.ModelProto) -> bool:
    """Return whether an input has an open side beside the batch, as a text's length is."""
    return any(size.dim_param for value in proto.graph.input for size in value.type.tensor_type.shape.dim[1:])


def write_single(source: Path, destination: Path) -> Path:
    """Write the ONNX file `source` for one image at a time to `destination`, and return that."""
    import onnx

    destination.write_bytes(fixed_batch(onnx.load(source)).SerializeToString(deterministic=True))
    return destination


def unshare(proto: onnx.ModelProto) -> None:
    """Give each layer, in place, a weight and a bias of its own where the exporter merged equal ones.

    It merges tensors whose values happen to be equal (biases of zeros), which would make names depend on values and
    leave no room for a scale per layer.
    """
    import onnx

    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    seen: set[str] = set()
    for node in proto.graph.node:
        for position in _ROLES if node.op_type in _WITH_ROLES else ():
            if position >= len(node.input) or node.input[position] not in tensors:
                continue
            name = node.input[position]
            if name in seen:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensors[name])
                copy.name = f"onnx::own_{len(tensors)}"
                proto.graph.initializer.append(copy)
                tensors[copy.name] = copy
                node.input[position] = copy.name
            seen.add(name)


def rename(proto: onnx.ModelProto, *, prefix: str, modules: Sequence[str]) -> None:
    """Name, in place, nodes and values after modules, and weights as in the model's state.

    The exporter numbers some tensors in the order it meets them, and calls ``a.b.c`` ``/prefix/a/a.b/a.b.c``. Numbers
    would change with the exporter; names are what stored scales and bug reports refer to. Inputs and outputs of the
    graph keep their names. `modules`: dotted names of all modules of the model.
    """
    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    state = {tensor.name for tensor in graph.initializer}
    taken = set(kept)
    names: dict[str, str] = {}

    def take(name: str, wish: str) -> None:
        unique, count = wish, 0
        while unique in taken:
            count += 1
            unique = f"{wish}_{count}"
        taken.add(unique)
        names[name] = unique

    for tensor in graph.initializer:
        if not tensor.name.startswith(("onnx::", "/")) and not tensor.name.isdigit():
            take(tensor.name, tensor.name.removeprefix(f"{prefix}."))
    for node in graph.node:
        node.name = _node_name(node, prefix, modules)
        module = node.name.rpartition("/")[0]
        for position, name in enumerate(node.input):
            if name in state and name not in names:
                named = node.op_type in _WITH_ROLES and module and position in _ROLES
                take(name, f"{module}.{_ROLES[position]}" if named else f"{node.name}.{position}")
        for position, name in enumerate(node.output):
            if name not in kept:
                take(name, node.name if position == 0 else f"{node.name}:{position}")
    used: set[str] = set()
    for node in graph.node:
        wish, count = node.name, 0
        while node.name in used:
            count += 1
            node.name = f"{wish}_{count}"
        used.add(node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _node_name(node: onnx.NodeProto, prefix: str, modules: Sequence[str]) -> str:
    """Return ``a.b.c/Op`` for a node the exporter called ``/prefix/a/a.b/a.b.c/Op_3``."""
    parts = [part for part in node.name.split("/") if part][:-1]
    parts = parts[1:] if parts[:1] == [prefix] else parts
    path = [
        part for part, following in zip(parts, [*parts[1:], ""], strict=False) if not following.startswith(f"{part}.")
    ]
    module = _module_named(".".join(path), modules)
    return f"{module}/{node.op_type}" if module else str(node.op_type)


def _module_named(scope: str, modules: Sequence[str]) -> str:
    """Return the module that the exporter calls `scope`: it skips those whose methods are called, not they themselves.

    ``backbone.conv_stem`` is ``backbone.network.conv_stem`` where ``backbone`` calls ``network.forward_features``.
    """
    if scope in modules:
        return scope
    first, _, rest = scope.partition(".")
    fitting = [name for name in modules if name.startswith(f"{first}.") and name.endswith(f".{rest}")] if rest else []
    nearest = [name for name in fitting if name.count(".") == scope.count(".") + 1]
    return nearest[0] if len(nearest) == 1 else scope


def describe(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace, in place, whatever the tools noted (paths, positions) by `metadata`, in the order of its keys."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.name = "classifier"
    proto.producer_name, proto.producer_version = "featcache", importlib.metadata.version("featcache")
    for key in sorted(metadata):
        proto.metadata_props.add(key=key, value=metadata[key])


def check(proto: onnx.ModelProto, *, opset: int, tensors: Sequence[str]) -> None:
    """Raise `VerificationError` unless the graph is valid, of `opset` alone, with `tensors` of a dynamic batch N."""
    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"the exported graph must pass ONNX's checker, got: {error}") from error
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": opset}:
        raise VerificationError(f"the exported graph must use opset {opset} only, got {opsets!r}")
    batch = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param for value in (*proto.graph.input, *proto.graph.output)
    }
    if batch != dict.fromkeys(tensors, "N"):
        raise VerificationError(f"the batch of every input and output must stay dynamic (N), got {batch!r}")
