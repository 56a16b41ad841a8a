"""What is stored of a quantized model: which operations compute in integers, and the 8 bits of each tensor.

Names are those of the float graph that `featcache.graph.write` writes. Real value = scale · (stored − zero point).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from featcache.errors import CorruptError, FormatError, InputError

QUANTIZATION_VERSION = 2
_WITHOUT_DYNAMIC = 1  # what has no `dynamic` is written so, for readers that know no other
_LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, slots=True)
class QuantParams:
    """The affine map between a tensor's real values and its 8 bits.

    Parameters
    ----------
    scale
        Above 0: one for the whole tensor, or one for each of its slices along `axis`.
    zero_point
        What stands for the real value 0, as many as there are scales.
    dtype
        ``uint8`` or ``int8``.
    axis
        The axis that the scales go along, None for one scale.

    Raises
    ------
    InputError
        Where a value is not as said.

    Examples
    --------
    >>> QuantParams((0.5,), (128,), "uint8", None).to_json()
    {'scale': 0.5, 'zero_point': 128, 'signed': False, 'axis': None}
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    dtype: Literal["int8", "uint8"]
    axis: int | None

    def __post_init__(self) -> None:
        if self.dtype not in _LIMITS:
            raise InputError(f"dtype must be 'int8' or 'uint8', got {self.dtype!r}")
        if self.axis is not None and (not _whole(self.axis) or self.axis < 0):
            raise InputError(f"axis must be None or an integer from 0, got {self.axis!r}")
        if not all(isinstance(scale, float) and math.isfinite(scale) and scale > 0 for scale in self.scale):
            raise InputError(f"scale must be finite floats above 0, got {self.scale!r}")
        low, high = _LIMITS[self.dtype]
        if not all(_whole(zero) and low <= zero <= high for zero in self.zero_point):
            raise InputError(f"zero_point must be integers of {self.dtype}, got {self.zero_point!r}")
        if not self.scale or (self.axis is None and len(self.scale) != 1):
            raise InputError(f"scale must be one without an axis, one or more along it, got {len(self.scale)}")
        if len(self.zero_point) != len(self.scale):
            raise InputError(
                f"zero_point must be as many as there are scales, {len(self.scale)}, got {len(self.zero_point)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, plain numbers where there is no axis."""
        several = self.axis is not None
        return {
            "scale": list(self.scale) if several else self.scale[0],
            "zero_point": list(self.zero_point) if several else self.zero_point[0],
            "signed": self.dtype == "int8",
            "axis": self.axis,
        }

    @classmethod
    def from_json(cls, values: Any) -> QuantParams:
        """Return what `to_json` gave; `InputError` naming the field for anything else."""
        if not isinstance(values, Mapping):
            raise InputError(f"it must be an object, got {values!r}")
        missing = {"scale", "zero_point", "signed", "axis"} - set(values)
        if missing:
            raise InputError(f"{min(missing)} must be there, it is not")
        if not isinstance(values["signed"], bool):
            raise InputError(f"signed must be true or false, got {values['signed']!r}")
        several = values["axis"] is not None
        for name in ("scale", "zero_point"):
            if isinstance(values[name], list) != several:
                raise InputError(f"{name} must be a list where there is an axis, else a number, got {values[name]!r}")
        scale, zero_point = (values[name] if several else [values[name]] for name in ("scale", "zero_point"))
        return cls(tuple(scale), tuple(zero_point), "int8" if values["signed"] else "uint8", values["axis"])


@dataclass(frozen=True, slots=True)
class Quantization:
    """The content of ``quant.json``.

    Parameters
    ----------
    nodes
        Names of the operations computed in integers (Conv, Gemm, MatMul, Add).
    activations
        Of each quantized value on the way, by name.
    weights
        Of each quantized weight, by name; of a node that is not in `nodes` only the stored bytes shrink, and it
        computes in floats.
    dynamic
        Names of the products (MatMul) whose other factor is rounded at run time, each row with a scale of its own,
        where the runtime can; else they compute in floats.

    Raises
    ------
    InputError
        For a weight that is not signed with zero points of 0 along an axis, a value on the way with an axis, and a node
        named twice.

    Examples
    --------
    >>> weight = QuantParams((0.5, 0.25), (0, 0), "int8", axis=0)
    >>> Quantization(("conv",), {}, {"conv.weight": weight}).to_json()["nodes"]
    ['conv']
    """

    nodes: tuple[str, ...]
    activations: Mapping[str, QuantParams] = field(default_factory=dict)
    weights: Mapping[str, QuantParams] = field(default_factory=dict)
    dynamic: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({*self.nodes, *self.dynamic}) != len(self.nodes) + len(self.dynamic):
            raise InputError("nodes and dynamic must name each node once")
        for name, params in self.activations.items():
            if params.axis is not None:
                raise InputError(f"activations[{name!r}].axis must be None, got {params.axis!r}")
        for name, params in self.weights.items():
            if params.dtype != "int8" or any(params.zero_point):
                raise InputError(f"weights[{name!r}] must be signed with zero_point 0, got {params.dtype} with others")
            if params.axis is None:
                raise InputError(f"weights[{name!r}].axis must be an integer, got None")

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``quant.json``."""
        dynamic = {"dynamic": list(self.dynamic)} if self.dynamic else {}
        return {
            "version": QUANTIZATION_VERSION if self.dynamic else _WITHOUT_DYNAMIC,
            "nodes": list(self.nodes),
            "activations": {name: params.to_json() for name, params in self.activations.items()},
            "weights": {name: params.to_json() for name, params in self.weights.items()},
            **dynamic,
        }

    @classmethod
    def from_json(cls, document: Any) -> Quantization:
        """Return the quantization that a document of ``quant.json`` holds.

        Raises `FormatError` for another version, `CorruptError` naming the field where it is not what `to_json` gave.
        """
        if not isinstance(document, Mapping):
            raise CorruptError("quant.json must be a JSON object: quantize the model again")
        if document.get("version") not in (_WITHOUT_DYNAMIC, QUANTIZATION_VERSION):
            raise FormatError(
                f"quant.json must be of version {_WITHOUT_DYNAMIC} or {QUANTIZATION_VERSION}, got "
                f"{document.get('version')!r}: open it with the featcache that wrote it"
            )
        nodes, dynamic = _names(document.get("nodes"), "nodes"), _names(document.get("dynamic", []), "dynamic")
        try:
            return cls(nodes, _params(document, "activations"), _params(document, "weights"), dynamic)
        except InputError as error:
            raise CorruptError(f"in quant.json {error}: quantize the model again") from error


def along_axis(scales: Sequence[float], *, axis: int) -> QuantParams:
    """Return the parameters of a weight stored as int8 with these `scales` along `axis` and zero points of 0."""
    return QuantParams(tuple(float(scale) for scale in scales), (0,) * len(scales), "int8", axis)


def _names(names: Any, key: str) -> tuple[str, ...]:
    """Return the names that stand under `key` of ``quant.json``; `CorruptError` where it is something else."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptError(f"{key} of quant.json must be a list of names: quantize the model again")
    return tuple(names)


def _params(document: Mapping[str, Any], part: str) -> dict[str, QuantParams]:
    """Return the parameters by tensor in one part of ``quant.json``; `InputError` naming the field that is damaged."""
    entries = document.get(part)
    if not isinstance(entries, Mapping):
        raise InputError(f"{part} must be an object by tensor, got {entries!r}")
    params = {}
    for name, values in entries.items():
        try:
            params[name] = QuantParams.from_json(values)
        except InputError as error:
            raise InputError(f"{part}[{name!r}]: {error}") from error
    return params


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
