"""The tensors of an Open Inference Protocol request, in JSON or binary, checked; and those of its answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.serve.batching import Pixels
from featcache.system.json import parse_json

INPUT, INPUT_TYPE, OUTPUT_TYPE = "image", "UINT8", "FP32"


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request: its `id`, the `images` (n, height, width, 3), and the outputs asked for, each with whether binary."""

    id: str | None
    images: Pixels
    outputs: tuple[tuple[str, bool], ...]


def read_request(
    body: bytes,
    *,
    header_length: str | None,
    image_shape: tuple[int, int, int],
    outputs: Sequence[str],
    most_images: int,
) -> InferRequest:
    """Return what `body` asks for.

    Parameters
    ----------
    body
        JSON, or JSON and binary values after it.
    header_length
        The header ``Inference-Header-Content-Length``: how many bytes are JSON; None: all.
    image_shape
        (height, width, 3) of the model's input.
    outputs
        The names of the model's outputs.
    most_images
        How many images a request may hold.

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
    images = _images(values.get("inputs"), binary, image_shape, most_images)
    binary_output = _flag(parameters, "binary_data_output", default=False)
    return InferRequest(identity, images, _outputs(values.get("outputs"), outputs, binary_output=binary_output))


def _images(inputs: Any, binary: memoryview, image_shape: tuple[int, int, int], most_images: int) -> Pixels:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"inputs must be a list of one tensor, {INPUT!r}")
    (tensor,) = inputs
    if tensor.get("name") != INPUT:
        raise InputError(f"the input's name must be {INPUT!r}, got {tensor.get('name')!r:.60}")
    if tensor.get("datatype") != INPUT_TYPE:
        raise InputError(f"datatype of {INPUT!r} must be {INPUT_TYPE!r}, got {tensor.get('datatype')!r:.60}")
    shape = tensor.get("shape")
    whole = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
    if not whole or len(shape) != 4 or tuple(shape[1:]) != image_shape or shape[0] < 1:
        wanted = ", ".join(map(str, image_shape))
        raise InputError(f"shape of {INPUT!r} must be [N, {wanted}] with N of at least 1, got {shape!r:.100}")
    if shape[0] > most_images:
        raise InputError(f"a request must hold at most {most_images} images, got {shape[0]}: send several requests")
    size = _mapping(tensor.get("parameters"), "parameters of the input").get("binary_data_size")
    if size is None:
        if len(binary):
            raise InputError(f"values after the JSON must be stated by binary_data_size, got {len(binary)} bytes")
        return _numbers(tensor.get("data"), math.prod(shape)).reshape(shape)
    if "data" in tensor:
        raise InputError("an input must have data or binary_data_size, got both")
    if isinstance(size, bool) or size != math.prod(shape) or size != len(binary):
        raise InputError(
            f"binary_data_size must be the {math.prod(shape)} bytes of the shape and what follows the JSON, got "
            f"{size!r:.40} and {len(binary)} bytes"
        )
    return np.frombuffer(binary, dtype=np.uint8).reshape(shape)


def _numbers(data: Any, count: int) -> npt.NDArray[np.uint8]:
    """Return the `count` values of nested or flat lists; `InputError` for other than whole numbers 0 to 255."""
    wanted = f"data must be {count} whole numbers 0 to 255"
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
    if values.min() < 0 or values.max() > 255:
        raise InputError(f"{wanted}, got {values.min()} to {values.max()}")
    return values.astype(np.uint8).reshape(-1)


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
