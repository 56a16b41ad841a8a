"""How long each layer takes in ONNX Runtime on this machine, by how much of its work is left.

Fewer multiplications are not as much less time: a layer of few channels waits for memory. So the network is narrowed
evenly to some shares, and each layer is timed in each of them, inside the network as it runs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from featcache.compression.costs import LayerCost, NetworkCost
from featcache.compression.groups import ChannelGroup
from featcache.compression.measurement import latencies_ms
from featcache.compression.narrowing import narrowed
from featcache.engines.session import open_session
from featcache.graph.nodes import Graph
from featcache.model.merged import MergedModel, with_network
from featcache.system.json import parse_json
from featcache.system.threads import processor_count

_SHARES = (0.75, 0.5, 0.25)  # of every group's channels
_RUNS = 40
_MULTIPLE = 8
_NETWORK = "backbone.network."
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def layer_times(
    model: MergedModel, groups: Sequence[ChannelGroup], of_layers: Mapping[str, tuple[str, ...]]
) -> NetworkCost:
    """Return the time of one image in ms as a function of the groups' widths.

    `of_layers`: the groups that each layer's work grows with.
    """
    full = {group.name: group.width for group in groups}
    timed = [(full, _times(model, model.backbone.network))]
    for share in _SHARES:
        widths = {group.name: _near(group, share) for group in groups}
        gone = {group.name: torch.arange(widths[group.name], group.width) for group in groups}
        timed.append((widths, _times(model, narrowed(model, model.backbone.network, gone, groups))))
    whole = timed[0][1]
    layers = {}
    for name, milliseconds in whole.items():
        if name in of_layers:
            points = sorted(
                (float(np.prod([widths[group] / full[group] for group in of_layers[name]])), times.get(name, 0.0))
                for widths, times in timed
            )
            shares, costs = zip(*points, strict=True)
            layers[name] = LayerCost(milliseconds, of_layers[name], (shares, tuple(np.maximum.accumulate(costs))))
    rest = sum(milliseconds for name, milliseconds in whole.items() if name not in of_layers)
    return NetworkCost(layers, groups, rest=rest)


def _near(group: ChannelGroup, share: float) -> int:
    step = group.unit if group.unit > 1 else _MULTIPLE
    return min(group.width, max(step, round(share * group.width / step) * step))


def _times(model: MergedModel, network: nn.Module) -> dict[str, float]:
    """Return the median ms of each layer by module name, what follows a layer and is computed with it included."""
    from featcache.graph.write import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(with_network(model, network), Path(folder) / "network.onnx")
        owners = _owners(Graph(onnx.load(str(path))))
        session = open_session(path, threads=processor_count(), profile=Path(folder), spinning=True)
        image = np.zeros((1, *session.get_inputs()[0].shape[1:]), dtype=np.uint8)
        for _ in range(_RUNS):
            session.run(None, {"image": image})
        events = parse_json(Path(session.end_profiling()).read_bytes())
    runs: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
            runs.setdefault(name, []).append(event["dur"] / 1e3)
    times: dict[str, float] = {}
    for name, milliseconds in runs.items():
        owner = owners.get(name, name)
        times[owner] = times.get(owner, 0.0) + statistics.median(milliseconds)
    return times


def _owners(graph: Graph) -> dict[str, str]:
    """Return for each node the layer whose output it makes or works on alone: ONNX Runtime runs them as one."""
    owners: dict[str, str] = {}
    by_output: dict[str, str] = {}
    for node in graph.nodes:
        sources = {by_output[name] for name in node.inputs if name in by_output}
        if node.kind in _PRODUCTS:
            owner = node.name.rpartition("/")[0].removeprefix(_NETWORK)
        elif len(sources) == 1:
            owner = next(iter(sources))
        else:
            continue
        owners[node.name] = owner
        by_output.update(dict.fromkeys(node.outputs, owner))
    return owners


def share_of_time(model: MergedModel, network: nn.Module) -> float:
    """Return the time of `model` with this network instead of its own, as a share of its own time."""
    from featcache.graph.write import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        whole = write_onnx(model, Path(folder) / "whole.onnx")
        small = write_onnx(with_network(model, network), Path(folder) / "small.onnx")
        times = latencies_ms([whole, small])
    return times[1] / times[0]
