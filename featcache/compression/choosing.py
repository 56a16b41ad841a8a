"""Which layers compute in integers: all but the first convolutions, or all but as few as a budget of error asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx

from featcache.compression.layerwise import Calibrated
from featcache.errors import InputError
from featcache.graph.cost import node_macs

FLOAT_SHARE = 0.1  # of the multiplications, spent on the first convolutions: they cost most when rounded
MOST_FLOATS = 0.5  # of the multiplications that a budget of error may keep in floats: integers must stay the rule
_MOST_FLOAT_CONVOLUTIONS = 0.15  # of all, likewise


def integer_nodes(graph: onnx.ModelProto, *, float_share: float) -> list[str]:
    """Return the names of the nodes to compute in integers: convolutions, products with weights, sums of such results.

    The leading convolutions are left out while all of them together take at most `float_share` of the multiplications.
    Raises `InputError` where nothing is left.
    """
    macs = node_macs(graph)
    budget = float_share * sum(macs.values())
    convolutions = [node.name for node in layers_with_weights(graph) if node.op_type == "Conv"]
    kept: set[str] = set()
    for name in convolutions[: int(_MOST_FLOAT_CONVOLUTIONS * len(convolutions))]:
        budget -= macs[name]
        if budget < 0:
            break
        kept.add(name)
    return nodes_without(graph, kept)


def nodes_without(graph: onnx.ModelProto, floats: Collection[str]) -> list[str]:
    """Return the names of the nodes to compute in integers where the layers named `floats` are not to be.

    Raises `InputError` where nothing is left.
    """
    layers = {node.name for node in layers_with_weights(graph)}
    chosen: list[str] = []
    from_integers: set[str] = set()
    for node in graph.graph.node:
        if node.name in layers and node.name not in floats:
            chosen.append(node.name)
            if node.op_type == "Conv":
                from_integers.add(node.output[0])
        elif node.op_type in ("Relu", "Clip") and node.input[0] in from_integers:
            from_integers.add(node.output[0])
        elif node.op_type == "Add" and all(name in from_integers for name in node.input):
            chosen.append(node.name)
            from_integers.add(node.output[0])
    if not chosen:
        raise InputError("the network must have convolutions or linear layers to quantize, it has none left")
    return chosen


def layers_with_weights(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the convolutions and the products with stored weights, in the order of the graph."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [node for node in graph.graph.node if node.op_type in ("Conv", "MatMul") and node.input[1] in weights]


def fewest_floats(
    walk: Callable[[Collection[str]], Calibrated],
    errors: Mapping[str, float],
    macs: Mapping[str, int],
    *,
    max_error: float,
) -> Calibrated:
    """Return the integers with the fewest of the worst layers in floats whose features are off by at most `max_error`.

    `walk`: calibrates with these layers in floats. `errors`: of each layer's integers alone; the worst go first.
    `macs`: multiplications of each node. Raises `InputError` where half of the multiplications in floats do not do.
    """
    order = sorted(errors, key=lambda name: -errors[name])
    most = _affordable(order, macs)
    found: dict[int, Calibrated] = {}

    def holds(count: int) -> bool:
        found[count] = walk(order[:count])
        return found[count].error <= max_error

    low, high = -1, 0  # so many are too few, so many are tried
    while not holds(high):
        if high == most:
            raise InputError(
                f"--max-error must be one that holds with half of the multiplications in integers, got {max_error:g}: "
                f"the features are off by {found[high].error:.3g} of their variance with the {high} worst layers in "
                "floats; allow more, or take --precision fp16"
            )
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return found[high]


def _affordable(order: Sequence[str], macs: Mapping[str, int]) -> int:
    """Return how many of the first layers of `order` take at most `MOST_FLOATS` of the multiplications together."""
    left, count = MOST_FLOATS * sum(macs.values()), 0
    for name in order[:-1]:  # one at least stays in integers
        left -= macs[name]
        if left < 0:
            break
        count += 1
    return count
