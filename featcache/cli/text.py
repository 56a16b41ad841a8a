"""Texts to values, and results to lines that people read (as one JSON object with ``--json``)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featcache.cli.output import escaped, put, put_json, say
from featcache.errors import InputError

if TYPE_CHECKING:
    from featcache.backbone.available import AvailableBackbone


def parse_pairs(texts: Iterable[str] | None) -> dict[str, Any] | None:
    """Return ``KEY=VALUE`` texts as a mapping; values are JSON where they parse as JSON, else text.

    Raises `InputError` for a text without a key.
    """
    if not texts:
        return None
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--model-kwargs must be KEY=VALUE, got {text!r}")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def parse_triple(text: str | None, flag: str) -> tuple[float, float, float] | None:
    """Return ``R,G,B`` as three numbers, None as it is; raises `InputError` for another text."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} must be three numbers R,G,B, got {text!r}") from error
    return red, green, blue


def parse_penalty(text: str, flag: str) -> Any:
    """Return a number, or ``auto`` as it is; raises `InputError` for another text."""
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{flag} must be a number or 'auto', got {text!r}") from error


def parse_scales(text: str, flag: str) -> Any:
    """Return numbers that stand between commas, or ``auto`` as it is; raises `InputError` for another text."""
    if text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} must be 'auto' or numbers separated by commas, got {text!r}") from error


def parse_integers(text: str, flag: str) -> list[int]:
    """Return whole numbers that stand between commas; raises `InputError` for another text."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} must be whole numbers separated by commas, got {text!r}") from error


def say_if_random(is_random: bool, label: str) -> None:
    """Say that a backbone has learned nothing, where that is so."""
    if is_random:
        say(f"note: the backbone's weights are random ({label}); it has learned nothing")


def show(result: Mapping[str, Any], as_json: bool, *, keys: Iterable[str] | None = None) -> None:
    """Print a result: all of it as JSON, or the `keys` a person wants to see, one a line."""
    if as_json:
        put_json(result)
        return
    for key in keys or result:
        put(f"{escaped(key):>20}  {human(result[key])}")


def human(value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {human(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(human(inner) for inner in value) or "-"
    return str(value)


def backbone_table(listed: Sequence[AvailableBackbone]) -> Iterator[str]:
    """Yield the lines of a table of backbones; an accuracy measured with other weights has a star."""
    sets = list(dict.fromkeys(name for one in listed for name in one.accuracy or ()))
    rows = [["name", "input", "parameters", "features", "bytes", "images/s", *sets, "where"]]
    for one in listed:
        size = "x".join(map(str, one.input_size or ("-",)))
        star = "" if one.accuracy_with is None else "*"
        accuracies = [f"{100 * one.accuracy[name]:.1f} %{star}" if one.accuracy else "-" for name in sets]
        rows.append(
            [
                one.name,
                size if one.input == "image" else f"text {size}",
                f"{one.parameters:,}",
                human(one.num_features),
                f"{one.bytes:,}",
                "-" if one.images_per_second is None else f"{one.images_per_second:,.0f}",
                *accuracies,
                one.where if one.weights is None else one.weights,
            ]
        )
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells, last])
