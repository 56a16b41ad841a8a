"""Weights of an ONNX graph stored in half precision, where they are such numbers anyway: nothing is rounded here."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featcache.graph.nodes import Array

_LEAST_NUMBERS = 256  # below, the operation that makes them floats takes what they save


def is_of_halves(values: Array) -> bool:
    """Return whether `values`, float32 of two axes or more, are worth storing in half precision and lose nothing.

    >>> is_of_halves(np.full((16, 16), 0.1, dtype=np.float32)), is_of_halves(np.full((16, 16), 0.5, dtype=np.float32))
    (False, True)
    """
    if values.dtype != np.float32 or values.ndim < 2 or values.size < _LEAST_NUMBERS:
        return False
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def store_halves(model: onnx.ModelProto) -> None:
    """Store, in place, each weight that is of halves as float16, with a Cast to float32 before who reads it."""
    graph = model.graph
    kept, casts = [], []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if not is_of_halves(values):
            kept.append(tensor)
            continue
        kept.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}/half"))
        casts.append(
            helper.make_node(
                "Cast", [f"{tensor.name}/half"], [tensor.name], f"{tensor.name}/cast", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(tensors)
