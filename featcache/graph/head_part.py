"""`head_part`: the head alone, cut from the ONNX file of a classifier, to answer for features that are stored."""

from __future__ import annotations

from pathlib import Path

import onnx

from featcache.errors import FormatError

_HEAD = "head/"  # nodes are named after the module they come from


def head_part(path: Path) -> bytes:
    """Return an ONNX file of the nodes from the features to the logits: ``features`` (N, d) in, ``logits`` (N, k) out.

    Raises `FormatError` where the file does not show by its names where the head begins.
    """
    model = onnx.load(path)
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    of_head = {id(node) for node in graph.node if node.name.startswith(_HEAD)}
    entries = {
        name
        for node in graph.node
        if id(node) in of_head
        for name in node.input
        if name in maker and id(maker[name]) not in of_head and maker[name].op_type != "Constant"
    }
    if len(entries) != 1:
        raise FormatError(f"{path.name!r} must show where its head begins, it has {len(entries)} such places")
    (entry,) = entries
    needed: set[int] = set()
    values: set[str] = set()
    waiting = ["logits"]
    while waiting:
        name = waiting.pop()
        if name in values or name == entry:
            continue
        values.add(name)
        if name in maker:
            needed.add(id(maker[name]))
            waiting += maker[name].input
    if read := sorted(values & {tensor.name for tensor in graph.input}):
        raise FormatError(f"{path.name!r} must have a head that reads nothing but the features, its reads {read[0]!r}")
    nodes = []
    for node in graph.node:
        if id(node) in needed:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(copy.input):
                if name == entry:
                    copy.input[position] = "features"
            nodes.append(copy)
    part = onnx.helper.make_graph(
        nodes,
        "head",
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [stored[name] for name in sorted(values) if name in stored],
    )
    made = onnx.helper.make_model(part, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    return bytes(made.SerializeToString())
