"""`--precision int8-dynamic`: which weights become integers where the rows they meet are rounded at run time.

Weights are rounded to nearest with a scale per output, and nothing is calibrated: each row brings its own scale along
(`featcache/graph/dynamic.py`).
"""

from __future__ import annotations

import onnx
import torch
from onnx import numpy_helper

from featcache.compression.choosing import layers_with_weights
from featcache.compression.rounding import channel_scales
from featcache.errors import InputError
from featcache.graph.cost import node_macs
from featcache.model.quantization import Quantization, along_axis

_TABLE_AXES = 2
_LEAST_SHARE = 0.5  # of the multiplications; below, most of the network would stay as it is


def integer_products(graph: onnx.ModelProto, *, limit: int) -> Quantization:
    """Return the scales of the weights that rows are multiplied with, integers of at most `limit`, and of tables.

    A table is one whose rows are looked up, as those of tokens are: a third or more of a text encoder's bytes.

    Raises `InputError` where less than half of the multiplications are such products: a convolutional network.
    """
    macs = node_macs(graph)
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    products = [
        node
        for node in layers_with_weights(graph)
        if node.op_type == "MatMul" and len(weights[node.input[1]].dims) == 2
    ]
    share = sum(macs[node.name] for node in products) / sum(macs.values())
    if share < _LEAST_SHARE:
        raise InputError(
            f"--precision int8-dynamic must have a network of linear layers, as transformers are, {share:.0%} of this "
            "one's multiplications are theirs: take --precision int8"
        )
    scales = {}
    for node in products:
        weight = torch.from_numpy(numpy_helper.to_array(weights[node.input[1]]).copy())  # (inputs, outputs)
        scales[node.input[1]] = along_axis(channel_scales(weight.T, limit=limit).tolist(), axis=1)
    for name in looked_up_tables(graph):
        table = torch.from_numpy(numpy_helper.to_array(weights[name]).copy())
        scales[name] = along_axis(channel_scales(table.T).tolist(), axis=1)
    return Quantization((), weights=scales, dynamic=tuple(node.name for node in products))


def looked_up_tables(graph: onnx.ModelProto) -> list[str]:
    """Return the names of the tables (rows, width) of which a computed choice of rows is all that the graph reads."""
    sizes = {tensor.name: len(tensor.dims) for tensor in graph.graph.initializer}
    lookups, others = [], set()
    for node in graph.graph.node:
        is_lookup = node.op_type == "Gather" and sizes.get(node.input[0]) == _TABLE_AXES and node.input[1] not in sizes
        if is_lookup:
            lookups.append(node.input[0])
        others.update(node.input[1:] if is_lookup else node.input)
    return [name for name in dict.fromkeys(lookups) if name not in others]
