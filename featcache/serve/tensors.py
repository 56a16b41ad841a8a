"""The tensors of an Open Inference Protocol request, in JSON or binary, checked; and those of its answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.system.json import parse_json

OUTPUT_TYPE = "FP32"
TensorValues = npt.NDArray[Any] | list[bytes]  # the latter of BYTES
_DTYPES: dict[str, npt.DTypeLike] = {"UINT8": np.uint8, "INT64": np.dtype("<i8")}
_LENGTH_BYTES = 4  # before each value of BYTES in binary, the least first


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a model takes: its name, its type, and the sizes behind N, -1 for any."""

    name: str
    datatype: Literal["UINT8", "INT64", "BYTES"]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request: its `id`, the `values` (n, …) of the tensor `name`, outputs asked for, each with whether binary."""

    id: str | None
    name: str
    values: TensorValues
    outputs: tuple[tuple[str, bool], ...]


def read_request(
    body: bytes,
    *,
    header_length: str | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    most: int,
    noun: str,
) -> InferRequest:
    """Return what `body` asks for.

    Parameters
    ----------
    body
        JSON, or JSON and binary values after it.
    header_length
        The header ``Inference-Header-Content-Length``: how many bytes are JSON; None: all.
    inputs
        The tensors that the model takes, any one of which a request holds.
    outputs
        The names of the model's outputs.
    most
        How many inputs a request may hold, each of them called `noun`.

    Raises
    ------
    InputError
        In one line, for anything else than a request for this model.
    """
    text, binary = body, memoryview(b"")
    if header_length is not None:
        if not header_length.isdecimal() or len(header_length) > 12 or int(header_length) > len(body):
            raise InputError(
                f"Inference-Header-Content-Length must be a number of bytes of the body's {len(body)}, got "
                f"{header_length[:40]!r}"
            )
        text, binary = body[: int(header_length)], memoryview(body)[int(header_length) :]
    try:
        values = parse_json(text)
    except ValueError as error:
        raise InputError(f"the request must be JSON, got: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"the request must be a JSON object, got a {type(values).__name__}")
    parameters = _mapping(values.get("parameters"), "parameters")
    identity = values.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError(f"id must be a text, got {identity!r:.60}")
    name, found = _input(values.get("inputs"), binary, inputs, most=most, noun=noun)
    binary_output = _flag(parameters, "binary_data_output", default=False)
    return InferRequest(identity, name, found, _outputs(values.get("outputs"), outputs, binary_output=binary_output))


def _input(
    inputs: Any, binary: memoryview, specs: Sequence[TensorSpec], *, most: int, noun: str
) -> tuple[str, TensorValues]:
    names = " or ".join(repr(spec.name) for spec in specs)
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"inputs must be a list of one tensor, {names}")
    (tensor,) = inputs
    spec = next((spec for spec in specs if spec.name == tensor.get("name")), None)
    if spec is None:
        raise InputError(f"the input's name must be {names}, got {tensor.get('name')!r:.60}")
    if tensor.get("datatype") != spec.datatype:
        raise InputError(f"datatype of {spec.name!r} must be {spec.datatype!r}, got {tensor.get('datatype')!r:.60}")
    shape = _shape(tensor.get("shape"), spec)
    if shape[0] > most:
        raise InputError(f"a request must hold at most {most} {noun}s, got {shape[0]}: send several requests")
    size = _mapping(tensor.get("parameters"), "parameters of the input").get("binary_data_size")
    if size is None:
        if len(binary):
            raise InputError(f"values after the JSON must be stated by binary_data_size, got {len(binary)} bytes")
        if spec.datatype == "BYTES":
            return spec.name, _texts(tensor.get("data"), shape[0])
        return spec.name, _numbers(tensor.get("data"), math.prod(shape), spec).reshape(shape)
    if "data" in tensor:
        raise InputError("an input must have data or binary_data_size, got both")
    if spec.datatype == "BYTES":
        if isinstance(size, bool) or size != len(binary):
            raise InputError(
                f"binary_data_size must be what follows the JSON, got {size!r:.40} and {len(binary)} bytes"
            )
        return spec.name, _split(binary, shape[0])
    dtype = np.dtype(_DTYPES[spec.datatype])
    wanted = math.prod(shape) * dtype.itemsize
    if isinstance(size, bool) or size != wanted or size != len(binary):
        raise InputError(
            f"binary_data_size must be the {wanted} bytes of the shape and what follows the JSON, got "
            f"{size!r:.40} and {len(binary)} bytes"
        )
    return spec.name, np.frombuffer(binary, dtype=dtype).reshape(shape)


def _shape(shape: Any, spec: TensorSpec) -> list[int]:
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    sizes = shape[1:] if whole else []
    fits = len(sizes) == len(spec.shape) and all(
        size == wanted if wanted >= 0 else size >= 1 for size, wanted in zip(sizes, spec.shape, strict=True)
    )
    if not whole or not shape or not fits or shape[0] < 1:
        wanted = ", ".join(["N", *(str(size) if size >= 0 else "L" for size in spec.shape)])
        raise InputError(f"shape of {spec.name!r} must be [{wanted}] with N of at least 1, got {shape!r:.100}")
    return list(shape)


def _numbers(data: Any, count: int, spec: TensorSpec) -> npt.NDArray[Any]:
    """Return the `count` values of nested or flat lists; `InputError` for what is no number of the type."""
    bounds = np.iinfo(_DTYPES[spec.datatype])
    shown = " 0 to 255" if spec.datatype == "UINT8" else ""
    wanted = f"data must be {count} whole numbers{shown}"
    if not isinstance(data, list):
        raise InputError(f"{wanted}, nested or flat, got {type(data).__name__}")
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:  # lists of different lengths
        raise InputError(f"{wanted}, got lists of different lengths") from error
    if values.dtype.kind not in "iu":
        raise InputError(f"{wanted}, got others among them")
    if values.size != count:
        raise InputError(f"{wanted}, got {values.size}")
    if values.min() < bounds.min or values.max() > bounds.max:
        raise InputError(f"{wanted}, got {values.min()} to {values.max()}")
    return values.astype(_DTYPES[spec.datatype]).reshape(-1)


def _texts(data: Any, count: int) -> list[bytes]:
    """Return the UTF-8 of a list of `count` strings."""
    if not isinstance(data, list) or len(data) != count or not all(isinstance(text, str) for text in data):
        raise InputError(f"data must be a list of {count} strings, got {data!r:.60}")
    try:
        return [text.encode() for text in data]
    except UnicodeEncodeError as error:
        raise InputError("a text must be whole characters, got half a surrogate pair: mend it") from error


def _split(binary: memoryview, count: int) -> list[bytes]:
    """Return the `count` values of BYTES in binary, each behind its length."""
    values: list[bytes] = []
    place = 0
    while place < len(binary) and len(values) < count:
        length = int.from_bytes(binary[place : place + _LENGTH_BYTES], "little")
        place += _LENGTH_BYTES
        if place + length > len(binary):
            break
        values.append(bytes(binary[place : place + length]))
        place += length
    if place != len(binary) or len(values) != count:
        raise InputError(
            f"binary values must be {count} texts, each behind its length in {_LENGTH_BYTES} bytes, got {len(binary)} "
            f"bytes that are not"
        )
    return values


def _outputs(asked: Any, names: Sequence[str], *, binary_output: bool) -> tuple[tuple[str, bool], ...]:
    if asked is None or asked == []:
        return tuple((name, binary_output) for name in names)
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise InputError("outputs must be a list of objects with a name")
    chosen = []
    for one in asked:
        if one.get("name") not in names:
            raise InputError(f"an output's name must be one of {list(names)!r}, got {one.get('name')!r:.60}")
        parameters = _mapping(one.get("parameters"), "parameters of an output")
        chosen.append((one["name"], _flag(parameters, "binary_data", default=binary_output)))
    if len({name for name, _ in chosen}) != len(chosen):
        raise InputError("outputs must be named once each")
    return tuple(chosen)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, got {value!r:.60}")
    return value


def _flag(values: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, got {value!r:.60}")
    return value


def write_answer(
    described: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]], outputs: Sequence[tuple[str, bool]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many of its bytes are JSON where binary values follow, else None.

    `described`: its fields beside ``outputs``. `tensors`: what there is, of which `outputs` are given.
    """
    entries, parts = [], []
    for name, binary in outputs:
        values = np.ascontiguousarray(tensors[name], dtype="<f4")
        entry: dict[str, Any] = {"name": name, "datatype": OUTPUT_TYPE, "shape": list(values.shape)}
        if binary:
            parts.append(values.tobytes())
            entry["parameters"] = {"binary_data_size": values.nbytes}
        else:
            entry["data"] = values.reshape(-1).tolist()
        entries.append(entry)
    text = json.dumps({**described, "outputs": entries}, ensure_ascii=True, allow_nan=False).encode()
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)
