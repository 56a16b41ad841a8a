"""Compute a saved Core ML program with torch: each operation and weight as it stands in the file, in float32.

This is no Core ML runtime: it shows on any machine that the file holds the right program, weights and order of
classes, not what Apple's kernels make of it. Operations: coremltools' MIL reference, iOS 13 to 16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from featcache.errors import VerificationError
from featcache.formats.interface import Runner


class MilRunner(Runner):
    """The program of the specification at `spec` with the weights in `weights`.

    Raises `VerificationError` where it has operations that are not known here.
    """

    described = "the saved program and weights, computed by torch"

    def __init__(self, spec: Path, weights: Path) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.proto import Model_pb2

        document = Model_pb2.Model()
        document.ParseFromString(spec.read_bytes())
        program = load(document, specification_version=document.specificationVersion, file_weights_dir=str(weights))
        self._operations = [entry for entry in program.functions["main"].operations if entry.op_type != "const"]
        unknown = sorted({entry.op_type for entry in self._operations} - set(_OPERATIONS) - {"classify"})
        if unknown:
            raise VerificationError(
                f"the Core ML file must be made of operations that can be computed again here, it has {unknown!r}"
            )

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        with torch.inference_mode():
            return np.concatenate([self._logits(image) for image in images])

    def _logits(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        values: dict[str, Any] = {"image": torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))}

        def read(source: Any) -> Any:
            if source is None:
                return None
            if isinstance(source, (list, tuple)):
                return [read(entry) for entry in source]
            if source.name in values:
                return values[source.name]
            return torch.from_numpy(source.val) if isinstance(source.val, np.ndarray) else source.val

        for operation in self._operations:
            if operation.op_type == "classify":
                continue
            result = _OPERATIONS[operation.op_type]({key: read(value) for key, value in operation.inputs.items()})
            results = result if isinstance(result, (tuple, list)) else [result]
            for output, value in zip(operation.outputs, results, strict=True):
                values[output.name] = value
        logits: npt.NDArray[np.float32] = values["logits"].numpy()
        return logits

    def close(self) -> None:
        """Drop the program."""
        self._operations = []


def _dequantize(inputs: dict[str, Any]) -> torch.Tensor:
    data = torch.as_tensor(inputs["quantized_data"]).to(torch.float32)
    shape = [1] * data.ndim
    shape[int(inputs["axis"])] = -1
    scale, zero = (torch.as_tensor(np.asarray(inputs[key], dtype=np.float32)) for key in ("scale", "zero_point"))
    if scale.ndim:
        scale = scale.reshape(shape)
    if zero.ndim:
        zero = zero.reshape(shape)
    return (data - zero) * scale


def _ints(value: Any) -> list[int]:
    return [int(entry) for entry in np.asarray(value).reshape(-1)]


def _conv(inputs: dict[str, Any]) -> torch.Tensor:
    x, pads = inputs["x"], [0, 0, 0, 0]
    if inputs["pad_type"] == "custom":
        pads = _ints(inputs["pad"])
    elif inputs["pad_type"] != "valid":
        raise VerificationError(f"a Core ML convolution must be padded by numbers, it is by {inputs['pad_type']!r}")
    x = functional.pad(x, [pads[2], pads[3], pads[0], pads[1]])
    strides, dilations = _ints(inputs["strides"]), _ints(inputs["dilations"])
    return functional.conv2d(x, inputs["weight"], inputs.get("bias"), strides, 0, dilations, int(inputs["groups"]))


def _pool(inputs: dict[str, Any], *, largest: bool) -> torch.Tensor:
    pads = _ints(inputs["pad"]) if inputs["pad_type"] == "custom" else [0, 0, 0, 0]
    size, strides, ceil = _ints(inputs["kernel_sizes"]), _ints(inputs["strides"]), bool(inputs["ceil_mode"])
    x = inputs["x"]
    if largest:
        x = functional.pad(x, [pads[2], pads[3], pads[0], pads[1]], value=float("-inf"))
        return functional.max_pool2d(x, size, strides, ceil_mode=ceil)
    counted = not bool(inputs["exclude_padding_from_average"])
    return functional.avg_pool2d(x, size, strides, [pads[0], pads[2]], ceil_mode=ceil, count_include_pad=counted)


def _pad(inputs: dict[str, Any]) -> torch.Tensor:
    if inputs["mode"] != "constant":
        raise VerificationError(f"Core ML's pad must be of a constant, it is {inputs['mode']!r}")
    pads = _ints(inputs["pad"])  # before and after, of the last axes in order; torch wants the last axis first
    pairs = [pads[at : at + 2] for at in range(0, len(pads), 2)]
    return functional.pad(
        inputs["x"], [pad for pair in reversed(pairs) for pad in pair], value=float(inputs["constant_val"])
    )


def _slice(inputs: dict[str, Any]) -> torch.Tensor:
    x = inputs["x"]
    begin, end = _ints(inputs["begin"]), _ints(inputs["end"])
    stride = _ints(inputs["stride"]) if inputs.get("stride") is not None else [1] * x.ndim
    masks = {
        key: list(np.asarray(inputs[key]).reshape(-1)) if inputs.get(key) is not None else [False] * x.ndim
        for key in ("begin_mask", "end_mask", "squeeze_mask")
    }
    index: list[Any] = []
    for axis in range(x.ndim):
        if masks["squeeze_mask"][axis]:
            index.append(begin[axis])
            continue
        first = None if masks["begin_mask"][axis] else begin[axis]
        last = None if masks["end_mask"][axis] else end[axis]
        index.append(slice(first, last, stride[axis]))
    return x[tuple(index)]  # type: ignore[no-any-return]


def _split(inputs: dict[str, Any]) -> list[torch.Tensor]:
    axis, sizes = int(inputs["axis"]), inputs.get("split_sizes")
    if sizes is not None:
        return list(torch.split(inputs["x"], _ints(sizes), dim=axis))
    return list(torch.chunk(inputs["x"], int(inputs["num_splits"]), dim=axis))


def _layer_norm(inputs: dict[str, Any]) -> torch.Tensor:
    x, axes = inputs["x"], [int(axis) % inputs["x"].ndim for axis in _ints(inputs["axes"])]
    shape = [x.shape[axis] for axis in axes]
    if axes == list(range(x.ndim - len(axes), x.ndim)):
        return functional.layer_norm(x, shape, inputs.get("gamma"), inputs.get("beta"), float(inputs["epsilon"]))
    mean, variance = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    along = [x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)]
    scaled = (x - mean) / torch.sqrt(variance + float(inputs["epsilon"]))
    if inputs.get("gamma") is not None:
        scaled = scaled * inputs["gamma"].reshape(along)
    return scaled if inputs.get("beta") is None else scaled + inputs["beta"].reshape(along)  # type: ignore[no-any-return]


def _batch_norm(inputs: dict[str, Any]) -> torch.Tensor:
    statistics = (inputs["mean"], inputs["variance"], inputs.get("gamma"), inputs.get("beta"))
    return functional.batch_norm(inputs["x"], *statistics, training=False, eps=float(inputs["epsilon"]))


def _gather(inputs: dict[str, Any]) -> torch.Tensor:
    x = inputs["x"]
    axis, indices = int(inputs["axis"]) % x.ndim, torch.as_tensor(inputs["indices"]).long()
    if int(inputs["batch_dims"]):
        raise VerificationError("Core ML's gather must not go along a batch")
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    rows = x.index_select(axis, indices.reshape(-1))
    return rows.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])  # type: ignore[no-any-return]


def _matmul(inputs: dict[str, Any]) -> torch.Tensor:
    x, y = inputs["x"], inputs["y"]
    x = x.transpose(-1, -2) if inputs["transpose_x"] else x
    return torch.matmul(x, y.transpose(-1, -2) if inputs["transpose_y"] else y)


def _gelu(inputs: dict[str, Any]) -> torch.Tensor:
    if inputs["mode"] != "EXACT":
        raise VerificationError(f"Core ML's gelu must be exact, it is {inputs['mode']!r}")
    return functional.gelu(inputs["x"])


def _squeeze(inputs: dict[str, Any]) -> torch.Tensor:
    x = inputs["x"]
    for axis in sorted((axis % x.ndim for axis in _ints(inputs["axes"])), reverse=True):
        x = x.squeeze(axis)
    return x  # type: ignore[no-any-return]


def _expand_dims(inputs: dict[str, Any]) -> torch.Tensor:
    x, axes = inputs["x"], _ints(inputs["axes"])
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x  # type: ignore[no-any-return]


def _reduced(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda inputs: function(inputs["x"], dim=_ints(inputs["axes"]), keepdim=bool(inputs["keep_dims"]))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda inputs: function(inputs["x"], inputs["y"])


def _unary(function: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda inputs: function(inputs["x"])


_OPERATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "constexpr_affine_dequantize": _dequantize,
    "add": _binary(lambda x, y: x + y),
    "avg_pool": lambda inputs: _pool(inputs, largest=False),
    "batch_norm": _batch_norm,
    "clip": lambda inputs: torch.clamp(inputs["x"], float(inputs["alpha"]), float(inputs["beta"])),
    "concat": lambda inputs: torch.cat(inputs["values"], int(inputs["axis"])),
    "conv": _conv,
    "elu": lambda inputs: functional.elu(inputs["x"], float(inputs["alpha"])),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "identity": _unary(lambda x: x),
    "layer_norm": _layer_norm,
    "leaky_relu": lambda inputs: functional.leaky_relu(inputs["x"], float(inputs["alpha"])),
    "linear": lambda inputs: functional.linear(inputs["x"], inputs["weight"], inputs.get("bias")),
    "matmul": _matmul,
    "max_pool": lambda inputs: _pool(inputs, largest=True),
    "maximum": _binary(lambda x, y: torch.maximum(x, torch.as_tensor(y, dtype=torch.float32))),
    "minimum": _binary(lambda x, y: torch.minimum(x, torch.as_tensor(y, dtype=torch.float32))),
    "mul": _binary(lambda x, y: x * y),
    "pad": _pad,
    "pow": _binary(lambda x, y: x**y),
    "real_div": _binary(lambda x, y: x / y),
    "reduce_l2_norm": _reduced(torch.linalg.vector_norm),
    "reduce_max": _reduced(torch.amax),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "relu": _unary(functional.relu),
    "relu6": _unary(functional.relu6),
    "reshape": lambda inputs: inputs["x"].reshape(_ints(inputs["shape"])),
    "rsqrt": lambda inputs: torch.rsqrt(inputs["x"] + float(inputs["epsilon"])),
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": lambda inputs: torch.clamp(inputs["x"] * float(inputs["alpha"]) + float(inputs["beta"]), 0.0, 1.0),
    "silu": _unary(functional.silu),
    "slice_by_index": _slice,
    "softmax": lambda inputs: torch.softmax(inputs["x"], int(inputs["axis"])),
    "split": _split,
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "squeeze": _squeeze,
    "sub": _binary(lambda x, y: x - y),
    "tanh": _unary(torch.tanh),
    "thresholded_relu": lambda inputs: functional.threshold(inputs["x"], float(inputs["alpha"]), 0.0),
    "tile": lambda inputs: inputs["x"].repeat(_ints(inputs["reps"])),
    "transpose": lambda inputs: inputs["x"].permute(_ints(inputs["perm"])),
}
