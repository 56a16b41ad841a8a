"""What the endpoints take and give, for ``/openapi.json``: shapes with examples. Nothing is checked by these."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_LINES = {
    400: ("The input is not what the endpoint takes.", "shape of 'image' must be [N, 224, 224, 3], got [3]"),
    404: ("There is no such model or version.", "a model's name must be one of 'pets', got 'cars'"),
    408: ("The body did not arrive in time.", "a body must arrive within 30 seconds, got 12 bytes of it"),
    413: (
        "The body, or an image or text in it, is too large.",
        "a body must be at most 32000000 bytes, this one is larger",
    ),
    415: ("The body is not what the model reads.", "not an image file, or damaged in its first bytes"),
    422: ("A parameter of the address is not what it must be.", "top must be a whole number of at least 1"),
    503: ("There is no room now: come again.", "256 inputs wait already: try again in a moment"),
}
_ANY: dict[str, Any] = {"type": "string", "format": "binary"}


class Problem(BaseModel):
    """Why a request was not answered, in one line."""

    error: str


class ClassProbability(BaseModel):
    """A class and its probability; for regression a target and its value."""

    label: str
    probability: float


class ClassifiedInput(BaseModel):
    """What is seen in one image, or read in one text, or `error`: why it cannot be."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "file": "tabby.jpg", "label": "cat", "probability": 0.98, "unknown": False,
                    "top": [{"label": "cat", "probability": 0.98}, {"label": "dog", "probability": 0.02}],
                    "cached": False,
                },
                {"file": "notes.txt", "error": "not an image file, or damaged in its first bytes"},
            ]
        }
    )  # fmt: skip

    file: str | None = Field(
        description="The name that the client gave the file; null for a body that is the input, and for texts in JSON."
    )
    label: str | None = Field(None, description="The likeliest class; null for regression.")
    probability: float | None = None
    unknown: bool = Field(False, description="The model's rule says that it is of no known class.")
    top: list[ClassProbability] = Field(default=[], description="The likeliest classes, the first one first.")
    cached: bool = Field(False, description="It was answered from stored features.")
    error: str | None = None


class ServedName(BaseModel):
    """A version of a model."""

    name: str
    version: str
    task: str
    classes: list[str]
    format: str
    input: str = Field(description="The kind of what the model reads: image or text.")
    image: list[int] = Field(default=[], description="Height, width and channels of the images that it reads.")
    tokens: int | None = Field(None, description="How many tokens of a text it reads at most.")
    answers_from_cache: bool


class ServerMetadata(BaseModel):
    """What the server is, as the Open Inference Protocol has it."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor's name, type and shape; -1 is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives, as the Open Inference Protocol has it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Tensor(BaseModel):
    """A tensor and its values: nested or flat lists, or binary after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferenceAnswer(BaseModel):
    """What a model answers, as the Open Inference Protocol has it."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


class Liveness(BaseModel):
    """Whether the server lives."""

    live: bool


class Readiness(BaseModel):
    """Whether requests will be answered."""

    ready: bool


class ModelReadiness(Readiness):
    """Whether a model will answer."""

    name: str


CLASSIFY_BODY: dict[str, Any] = {
    "required": True,
    "description": (
        "A model of images: image files in fields named files, or one image as the body itself, whatever its "
        "Content-Type. A model of texts: JSON with a list of texts; or one text as the body itself, with the "
        "Content-Type text/plain; or text files in fields named files; all of them UTF-8."
    ),
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "properties": {"files": {"type": "array", "minItems": 1, "items": _ANY}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["texts"],
                "properties": {"texts": {"type": "array", "minItems": 1, "items": {"type": "string"}}},
                "additionalProperties": False,
            },
            "example": {"texts": ["my card has not arrived"]},
        },
        "text/plain": {"schema": {"type": "string"}},
        "image/jpeg": {"schema": _ANY},
        "image/png": {"schema": _ANY},
        "application/octet-stream": {"schema": _ANY},
    },
}

_NUMBERS: dict[str, Any] = {"type": "array", "items": {}}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"enum": ["image", "text", "input_ids"]},
        "shape": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
        "datatype": {"enum": ["UINT8", "BYTES", "INT64"]},
        "data": {**_NUMBERS, "description": "Whole numbers, nested or flat; of BYTES strings."},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
}
INFER_BODY: dict[str, Any] = {
    "required": True,
    "description": (
        "JSON; or, with the header Inference-Header-Content-Length, so many bytes of JSON and then the values of each "
        "input that states parameters.binary_data_size. A model of images takes image, UINT8 [N, height, width, 3]; "
        "one of texts either text, BYTES [N], in binary each text behind its length in four bytes, or input_ids, INT64 "
        "[N, L], with -1 behind shorter ones."
    ),
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "id": {"type": "string"},
                    "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TENSOR},
                    "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
                    "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
                },
            },
            "example": {
                "id": "1",
                "inputs": [{"name": "image", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [0, 0, 0, 9, 9, 9]}],
                "outputs": [{"name": "probabilities"}],
            },
        },
        "application/octet-stream": {"schema": _ANY},
    },
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of an endpoint's errors."""
    return {
        status: {
            "description": _LINES[status][0],
            "model": Problem,
            "content": {"application/json": {"example": {"error": _LINES[status][1]}}},
        }
        for status in statuses
    }
