"""Checks of what a store is asked for: every store makes the same ones, so that all refuse alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.store.interface import KEY_BYTES, Column, Keys, Rows, Values


def check_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns of a new store; raises `InputError` where there are none or two of one name."""
    if not columns or len({column.name for column in columns}) != len(columns):
        raise InputError(f"columns must be one or more with distinct names, got {[c.name for c in columns]!r}")
    return tuple(columns)


def check_keys(keys: Keys) -> Keys:
    """Return `keys` as an array; raises `InputError` where it is not (m, 32) uint8."""
    keys = np.asarray(keys)
    if keys.ndim != 2 or keys.shape[1] != KEY_BYTES or keys.dtype != np.uint8:
        raise InputError(f"keys must be (m, {KEY_BYTES}) uint8, got {keys.shape!r} {keys.dtype!s}")
    return keys


def check_values(columns: Sequence[Column], values: Mapping[str, Values], rows: int) -> dict[str, Values]:
    """Return `values` as arrays, one (rows, *shape) for each of `columns`; raises `InputError` for any others."""
    checked = {}
    for column in columns:
        if column.name not in values:
            raise InputError(f"columns must hold {column.name!r}, it is missing")
        array = np.asarray(values[column.name])
        if array.shape != (rows, *column.shape):
            raise InputError(f"{column.name!r} must have the shape {(rows, *column.shape)!r}, got {array.shape!r}")
        checked[column.name] = array
    if len(values) != len(checked):
        raise InputError(f"columns must be exactly {sorted(checked)!r}, got {sorted(values)!r}")
    return checked


def cast_values(column: Column, values: Values) -> Values:
    """Return `values` in the column's dtype, little-endian; raises `InputError` where one is too large for it."""
    try:
        with np.errstate(over="raise"):
            return values.astype(np.dtype(column.dtype).newbyteorder("<"), copy=False)
    except FloatingPointError as error:
        raise InputError(
            f"{column.name!r} must fit into {column.dtype}, it holds larger values: use float32"
        ) from error


def check_column(columns: Sequence[Column], name: str) -> Column:
    """Return the column called `name`; raises `InputError` where there is none."""
    for column in columns:
        if column.name == name:
            return column
    raise InputError(f"column must be one of {[column.name for column in columns]!r}, got {name!r}")


def check_rows(rows: Rows, count: int) -> Rows:
    """Return `rows` (m,) int64; raises `InputError` where they are no numbers from 0 to `count` - 1."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InputError(f"rows must be (m,) whole numbers, got {rows.shape!r} {rows.dtype!s}")
    rows = rows.astype(np.int64, copy=False)
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise InputError(f"rows must be from 0 to {count - 1}, got {int(rows.min())} to {int(rows.max())}")
    return rows


def check_span(start: int, stop: int, count: int) -> None:
    """Raise `InputError` where rows `start` to `stop` do not lie within `count` rows."""
    if not 0 <= start <= stop <= count:
        raise InputError(f"start and stop must lie within {count} rows, got {start!r} and {stop!r}")


def output_array(column: Column, rows: int, out: Values | None) -> Values:
    """Return `out`, or a new array (rows, *shape) where it is None; raises `InputError` where its shape is another."""
    shape = (rows, *column.shape)
    if out is None:
        return np.empty(shape, dtype=column.dtype)
    if out.shape != shape:
        raise InputError(f"out must have the shape {shape!r}, got {out.shape!r}")
    return out


def first_occurrences(keys: Keys) -> npt.NDArray[np.bool_]:
    """Return (m,) bool: whether a key (m, 32) did not occur before in the same array."""
    _, first = np.unique(np.ascontiguousarray(keys).view(f"V{KEY_BYTES}").ravel(), return_index=True)
    mask = np.zeros(len(keys), dtype=bool)
    mask[first] = True
    return mask
