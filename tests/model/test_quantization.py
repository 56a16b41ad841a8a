"""What is stored of a quantized model: checked when it is made, the same JSON back and forth, damage named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from featcache.errors import CorruptError, FormatError, InputError
from featcache.model.quantization import Quantization, QuantParams, along_axis

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "nodes": ["stem/Conv", "head/Gemm"],
    "activations": {"image": {"scale": 0.5, "zero_point": 128, "signed": False, "axis": None}},
    "weights": {"stem.weight": {"scale": [0.25, 0.5], "zero_point": [0, 0], "signed": True, "axis": 0}},
}


def test_document_read_and_written_is_the_same() -> None:
    """Every key and value of quant.json, plain numbers where there is no axis."""
    quantization = Quantization.from_json(DOCUMENT)
    assert quantization.weights["stem.weight"] == along_axis([0.25, 0.5], axis=0)
    assert quantization.activations["image"] == QuantParams((0.5,), (128,), "uint8", None)
    assert quantization.to_json() == DOCUMENT


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("nodes",), "stem/Conv", "nodes"),
        (("nodes",), ["a", "a"], "nodes"),
        (("activations",), None, "activations"),
        (("activations", "image"), 3, r"activations\['image'\]"),
        (("activations", "image", "scale"), 0.0, r"activations\['image'\]: scale"),
        (("activations", "image", "scale"), "0.5", r"activations\['image'\]: scale"),
        (("activations", "image", "scale"), [0.5], r"activations\['image'\]: scale"),
        (("activations", "image", "zero_point"), 256, r"activations\['image'\]: zero_point"),
        (("activations", "image", "zero_point"), True, r"activations\['image'\]: zero_point"),
        (("activations", "image", "signed"), 0, r"activations\['image'\]: signed"),
        (("weights", "stem.weight", "scale"), [0.25], r"weights\['stem.weight'\]: zero_point"),
        (("weights", "stem.weight", "scale"), 0.25, r"weights\['stem.weight'\]: scale"),
        (("weights", "stem.weight", "zero_point"), [0, 1], r"weights\['stem.weight'\].*zero_point"),
        (("weights", "stem.weight", "signed"), False, r"weights\['stem.weight'\].*signed"),
        (("weights", "stem.weight", "axis"), -1, r"weights\['stem.weight'\]: axis"),
        (("weights", "stem.weight", "axis"), 0.5, r"weights\['stem.weight'\]: axis"),
    ],
)
def test_damaged_document_is_corrupt_and_the_field_named(path: tuple[str, ...], value: object, named: str) -> None:
    """One line that says which entry is not what was written."""
    document = copy.deepcopy(DOCUMENT)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CorruptError, match=f"{named}.*quantize the model again"):
        Quantization.from_json(document)


@pytest.mark.parametrize("key", ["scale", "zero_point", "signed", "axis"])
def test_document_without_a_field_is_corrupt_and_the_field_named(key: str) -> None:
    """Also where nothing but a name is gone."""
    document = copy.deepcopy(DOCUMENT)
    del document["weights"]["stem.weight"][key]
    with pytest.raises(CorruptError, match=rf"weights\['stem.weight'\]: {key} must be there"):
        Quantization.from_json(document)


def test_document_of_another_version_is_refused() -> None:
    """It is for the featcache that wrote it."""
    with pytest.raises(FormatError, match="version 1 or 2, got 3"):
        Quantization.from_json({**DOCUMENT, "version": 3})


@pytest.mark.parametrize(
    ("scale", "zero_point", "dtype", "axis"),
    [
        ((0.1, 0.2), (0, 0), "int8", None),
        ((), (), "int8", 0),
        ((float("nan"),), (0,), "int8", None),
        ((0.1,), (-129,), "int8", None),
        ((0.1,), (0,), "int4", None),
    ],
)
def test_parameters_that_no_tensor_can_have_are_refused(
    scale: tuple[float, ...], zero_point: tuple[int, ...], dtype: Any, axis: int | None
) -> None:
    """Where they are made, not where they are used."""
    with pytest.raises(InputError):
        QuantParams(scale, zero_point, dtype, axis)
