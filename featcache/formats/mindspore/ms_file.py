"""Put the stored integers of weights into a ``.ms`` file, where MindSpore Lite's converter rounded the weights anew.

The converter cannot be told scales: it takes a scale and a zero point per output channel from the least and the largest
weight, and a factor and a summand that take back what its rounding did to spread and mean. All these, and the integers,
have fixed places in the file (a FlatBuffer), so they are overwritten where they stand: nothing moves. Tables and fields
are those of MindSpore Lite 2.0's ``model.fbs``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import FormatError

# numbers of fields in their tables, and of a type
_ALL_TENSORS = 7
_TYPE, _DIMENSIONS, _DATA, _QUANTIZATION, _NAME = 1, 2, 6, 7, 9
_SCALE, _ZERO_POINT, _FACTOR, _SUMMAND = 0, 1, 7, 8
_INT8 = 32


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight as `integers` (outputs, inputs, height, width) int8 with `scales` (outputs,) float32, zero points 0."""

    integers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]


def put_integers(data: bytes, weights: Mapping[str, StoredWeight]) -> tuple[bytes, int]:
    """Return the file `data` with the integers of `weights`, by tensor name, and how many numbers these are.

    Raises `FormatError` where a tensor of integers is not in `weights`, or stands for other values than they do by more
    than its rounding: the converter changed it.
    """
    buffer = bytearray(data)
    count = 0
    for tensor in _tables(buffer, _field(buffer, _root(buffer), _ALL_TENSORS)):
        parameters = _tables(buffer, _field(buffer, tensor, _QUANTIZATION))
        if not parameters or _integer(buffer, _field(buffer, tensor, _TYPE)) != _INT8:
            continue
        name = _bytes(buffer, _field(buffer, tensor, _NAME)).tobytes().decode()
        dimensions = np.frombuffer(_bytes(buffer, _field(buffer, tensor, _DIMENSIONS), width=4), dtype="<i4")
        place = np.frombuffer(_bytes(buffer, _field(buffer, tensor, _DATA)), dtype=np.int8)
        stored = weights.get(name)
        # outputs, height, width, inputs: as the runtime multiplies
        wanted = None if stored is None else stored.integers.transpose(0, 2, 3, 1)
        if stored is None or wanted is None or wanted.shape != tuple(dimensions) or place.size != wanted.size:
            raise FormatError(f"a weight that MindSpore Lite rounds must be one with stored integers, {name!r} is not")
        rounded = place.reshape(len(parameters), -1).astype(np.float64)
        for row, parameter in enumerate(parameters):
            scale, zero = _field(buffer, parameter, _SCALE), _field(buffer, parameter, _ZERO_POINT)
            assert scale is not None, "a scale is never 0, the value that is left out"
            (step,) = struct.unpack_from("<d", buffer, scale)
            written = (rounded[row] - _integer(buffer, zero)) * step
            exact = wanted[row].ravel().astype(np.float64) * stored.scales[row]
            if np.abs(written - exact).max() > 1.01 * step:
                raise FormatError(f"MindSpore Lite must keep the values of weight {name!r}, it changed them")
            struct.pack_into("<d", buffer, scale, float(stored.scales[row]))
            neutral = ((zero, "<i", 0), (_field(buffer, parameter, _FACTOR), "<f", 1.0),
                       (_field(buffer, parameter, _SUMMAND), "<f", 0.0))  # fmt: skip
            for entry, kind, value in neutral:
                if entry is not None:  # left out, it has this value
                    struct.pack_into(kind, buffer, entry, value)
        place[:] = wanted.ravel()
        count += wanted.size
    return bytes(buffer), count


def _root(buffer: bytearray) -> int:
    return int(struct.unpack_from("<I", buffer, 0)[0])


def _field(buffer: bytearray, table: int, number: int) -> int | None:
    """Return where field `number` of the table at `table` is, None where it is left out."""
    layout = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, layout)
    entry = 4 + 2 * number
    offset = struct.unpack_from("<H", buffer, layout + entry)[0] if entry < size else 0
    return table + offset if offset else None


def _integer(buffer: bytearray, place: int | None) -> int:
    return 0 if place is None else int(struct.unpack_from("<i", buffer, place)[0])


def _vector(buffer: bytearray, place: int | None) -> tuple[int, int]:
    """Return where the first element of the vector referred to at `place` is, and how many there are."""
    if place is None:
        return 0, 0
    start = place + struct.unpack_from("<I", buffer, place)[0]
    return start + 4, int(struct.unpack_from("<I", buffer, start)[0])


def _tables(buffer: bytearray, place: int | None) -> list[int]:
    first, count = _vector(buffer, place)
    places = range(first, first + 4 * count, 4)
    return [entry + int(struct.unpack_from("<I", buffer, entry)[0]) for entry in places]


def _bytes(buffer: bytearray, place: int | None, *, width: int = 1) -> memoryview:
    """Return the vector at `place`, of elements of `width` bytes, as a view that can be written."""
    first, count = _vector(buffer, place)
    return memoryview(buffer)[first : first + width * count]
