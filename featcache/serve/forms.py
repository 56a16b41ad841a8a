"""`RequestForm`: how inputs of a kind come in requests, as files, JSON or tensors, and what is said of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError, LargeTextError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.extract.inputs.deployed_texts import NO_TOKEN, DeployedTexts
from featcache.serve.batching import Prepared
from featcache.serve.multipart import UploadedFile, is_multipart, read_files
from featcache.serve.refusals import RefusedError
from featcache.serve.tensors import TensorSpec, TensorValues
from featcache.system.json import parse_json

MOST_TEXT_BYTES = 1 << 18
_READ_AS_TEXTS = 'the body must be JSON, {"texts": ["…"]}, or one text with the Content-Type text/plain'


class RequestForm(ABC):
    """The requests to a model of one input kind.

    `noun`: what one input is called. `tensors`: those of the Open Inference Protocol, of which a request holds one.
    """

    noun: ClassVar[str]
    tensors: tuple[TensorSpec, ...]

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Return what ``/models`` says of the input, JSON values."""

    @abstractmethod
    def read_body(self, body: bytes, content_type: str) -> tuple[list[UploadedFile], bool]:
        """Return the inputs of a request to classify, in their order, and whether the body is one, by itself.

        Raises `InputError` for a body of another form, `RefusedError` (415) for one of another kind of input.
        """

    @abstractmethod
    def prepare(self, data: bytes) -> Prepared:
        """Return an input as the network takes it; `SampleError` for bytes that are none."""

    @abstractmethod
    def read_tensor(self, name: str, values: TensorValues) -> Sequence[bytes | Prepared]:
        """Return the inputs in the tensor `name`: bytes to prepare, or what is prepared already.

        Raises `InputError` for values that the network does not take.
        """


class ImageForm(RequestForm):
    """Image files, or pixels."""

    noun = "image"

    def __init__(self, deployed: DeployedImages) -> None:
        self._deployed = deployed
        self._shape = tuple(deployed.example().shape[1:])
        self.tensors = (TensorSpec(deployed.tensor, "UINT8", self._shape),)

    def described(self) -> dict[str, Any]:
        """Return height, width and channels."""
        return {"image": list(self._shape)}

    def read_body(self, body: bytes, content_type: str) -> tuple[list[UploadedFile], bool]:
        """Return the files of a form, else the body, whatever its Content-Type: the content decides."""
        if is_multipart(content_type):
            return read_files(body, content_type), False
        return [UploadedFile(None, body)], True

    def prepare(self, data: bytes) -> Prepared:
        """Return pixels (height, width, 3)."""
        return self._deployed.prepare(data)

    def read_tensor(self, name: str, values: TensorValues) -> Sequence[bytes | Prepared]:
        """Return the pixels of each image."""
        return list(values)


class TextForm(RequestForm):
    """Texts in JSON, files or alone; as a tensor of bytes, or their ids."""

    noun = "text"
    tensors = (TensorSpec("text", "BYTES", ()), TensorSpec(DeployedTexts.tensor, "INT64", (-1,)))

    def __init__(self, deployed: DeployedTexts) -> None:
        self._deployed = deployed

    def described(self) -> dict[str, Any]:
        """Return how many tokens of a text are read."""
        return {"tokens": self._deployed.max_length}

    def read_body(self, body: bytes, content_type: str) -> tuple[list[UploadedFile], bool]:
        """Return the texts of JSON, those of a form's files, or the body of a plain text.

        A Content-Type that says neither, as curl's own, is JSON where the body begins so, else a text.
        """
        kind = content_type.partition(";")[0].strip().lower()
        if kind.partition("/")[0] in ("image", "audio", "video"):
            raise RefusedError(415, f"this model reads texts, got {kind}: {_READ_AS_TEXTS}")
        if is_multipart(content_type):
            return read_files(body, content_type), False
        if kind == "application/json" or (kind != "text/plain" and body.lstrip()[:1] == b"{"):
            return _texts_of(body), False
        return [UploadedFile(None, body)], True

    def prepare(self, data: bytes) -> Prepared:
        """Return the ids (length,); `LargeTextError` for a text of many bytes."""
        if len(data) > MOST_TEXT_BYTES:
            raise LargeTextError(
                f"a text must have at most {MOST_TEXT_BYTES} bytes, got {len(data)}: send a part of it"
            )
        return self._deployed.prepare(data)

    def read_tensor(self, name: str, values: TensorValues) -> Sequence[bytes | Prepared]:
        """Return the texts, or the ids of each, without the -1 behind."""
        if name != self._deployed.tensor:
            return list(values)
        return [self._ids_of(row) for row in np.asarray(values)]

    def _ids_of(self, row: npt.NDArray[np.int64]) -> Prepared:
        length = int((row != NO_TOKEN).sum())
        ids = row[:length]
        if not 1 <= length <= self._deployed.max_length:
            raise InputError(
                f"a row of {self._deployed.tensor!r} must hold 1 to {self._deployed.max_length} ids and {NO_TOKEN} "
                f"behind them, got {length} ids"
            )
        if ids.min() < 0 or ids.max() >= self._deployed.vocabulary:
            raise InputError(
                f"ids must be 0 to {self._deployed.vocabulary - 1}, as tokenizer.json has them, and {NO_TOKEN} only "
                f"behind them, got {int(ids.min())} to {int(ids.max())}"
            )
        return ids


def _texts_of(body: bytes) -> list[UploadedFile]:
    try:
        values = parse_json(body)
    except ValueError as error:
        raise InputError(f"{_READ_AS_TEXTS}, got: {error}") from error
    texts = values.get("texts") if isinstance(values, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{_READ_AS_TEXTS}, got {values!r:.60}")
    if others := [name for name in values if name != "texts"]:
        raise InputError(f"{_READ_AS_TEXTS}, got {others[0]!r:.60} beside the texts")
    try:
        return [UploadedFile(None, text.encode()) for text in texts]
    except UnicodeEncodeError as error:
        raise InputError("a text must be whole characters, got half a surrogate pair: mend it") from error


def form_of(deployed: DeployedInput) -> RequestForm:
    """Return the requests to a model that has `deployed` before it; `InputError` for an input kind without a form."""
    if isinstance(deployed, DeployedImages):
        return ImageForm(deployed)
    if isinstance(deployed, DeployedTexts):
        return TextForm(deployed)
    raise InputError(
        f"a served model must read images or texts, this one reads {deployed.noun}s "
        f"({deployed.preprocessing.input!r}): use featcache predict"
    )
