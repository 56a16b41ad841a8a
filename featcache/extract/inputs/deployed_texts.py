"""Texts before a deployed network: token ids, by the library tokenizers and the ``tokenizer.json`` that travels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.backbone.text.tokenizer import TextTokenizer
from featcache.engines.text.buckets import Buckets
from featcache.extract.inputs.deployed import DeployedInput
from featcache.recipe import Decoder, TextPreprocessing, preprocessing_to_json
from featcache.system.sources.batches import PreparedBatch, Source, prepared_batches
from featcache.system.sources.text_encoding import read_text

TOKENIZER_FILE = "tokenizer.json"
NO_TOKEN = -1  # behind a text that is shorter than its batch; the network leaves these places out
_EXAMPLE_TOKENS = 32
_FIXED_LENGTHS = (32, 128, 512, 2048)  # a sentence, a paragraph, a page: work grows with the length
_WINDOW = 1024
_TOKENS_PER_BATCH = 2048  # for all threads together
_SENTENCES = (
    "my card has not arrived yet what can I do to get a new one and how long does it take until it comes please help "
    "me I was charged twice for the same payment last week where is the transfer from my other account"
)
_WORDS = tuple(_SENTENCES.split())


class DeployedTexts(DeployedInput):
    """Token ids (n, length) int64, behind a text -1."""

    tensor, noun, pipeline, suffix = "input_ids", "text", "text-classification", ".txt"
    usual_size = 64

    def __init__(self, preprocessing: TextPreprocessing, tokenizer: bytes) -> None:
        self.preprocessing = self._settings = preprocessing
        self.assets = {TOKENIZER_FILE: tokenizer}
        self.lengths = (*(n for n in _FIXED_LENGTHS if n < preprocessing.max_length), preprocessing.max_length)
        self._tokenizer = TextTokenizer(tokenizer, preprocessing)
        self._buckets = Buckets(preprocessing.max_length, _TOKENS_PER_BATCH)

    @property
    def max_length(self) -> int:
        """How many tokens of a text are read at most."""
        return self._settings.max_length

    @property
    def vocabulary(self) -> int:
        """One more than the largest id that a text can have."""
        return self._tokenizer.vocabulary

    def prepare(self, data: bytes, *, decoder: Decoder | None = None) -> npt.NDArray[np.int64]:
        """Return the ids (length,) of a text's UTF-8."""
        return self._tokenizer.encode([read_text(data)])[0]

    def stack(self, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
        """Return the ids (n, length), of a few lengths only, so that a runtime meets few shapes."""
        longest = self._buckets.all[self._buckets.place(max(map(len, arrays)))].length
        batch = np.full((len(arrays), longest), NO_TOKEN, dtype=np.int64)
        for row, ids in zip(batch, arrays, strict=True):
            row[: len(ids)] = ids
        return batch

    def together(self, arrays: Sequence[npt.NDArray[Any]]) -> int:
        """Return how many of the first make a batch of few tokens, of which padding is no more than half."""
        longest = tokens = 0
        for count, ids in enumerate(arrays):
            longest, tokens = max(longest, len(ids)), tokens + len(ids)
            if count and (count + 1) * longest > min(_TOKENS_PER_BATCH, 2 * tokens):
                return count
        return len(arrays)

    def batches(self, sources: Sequence[Source], *, failures: dict[int, str]) -> Iterator[PreparedBatch]:
        """Yield texts of about one length together, those of a window the longest first."""
        lengths: list[int] = []

        def keep(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
            lengths[:] = [len(ids) for ids in arrays]
            return self.stack(arrays)

        for window in prepared_batches(sources, self.prepare, keep, failures=failures, batch_size=_WINDOW):
            for batch in self._buckets.plan(np.array(lengths, dtype=np.int64)):
                ids = window.values[batch.indices, : batch.bucket.length]
                yield PreparedBatch(window.indices[batch.indices], np.ascontiguousarray(ids))

    def example(self) -> npt.NDArray[np.int64]:
        """Return a text of about 32 tokens, or as many as fit."""
        text = " ".join(_WORDS[:_EXAMPLE_TOKENS])
        return self.prepare(text.encode())[None, : min(_EXAMPLE_TOKENS, self._settings.max_length)]

    def synthetic(self, count: int) -> tuple[bytes, ...]:
        """Return sentences of words drawn at random."""
        generator = np.random.default_rng(0)
        return tuple(" ".join(generator.choice(_WORDS, int(generator.integers(2, 24)))).encode() for _ in range(count))

    def golden(self, data: bytes) -> bytes:
        """Return the text as it is, without UTF-8's mark."""
        return read_text(data).encode()

    def tensors(self) -> dict[str, Any]:
        """Return the reference form: int64 (N, L)."""
        return {self.tensor: {"dtype": "int64", "layout": "NL", "shape": ["N", "L"], "padding": NO_TOKEN}}

    def document(self) -> dict[str, Any]:
        """Return the tokenizer's file and the steps."""
        settings = self._settings
        side = "end" if settings.truncation_side == "right" else "beginning"
        steps = [f"take at most {settings.max_characters:,} characters, cut off at the {side}"]
        if settings.prefix:
            steps.append(f"put {settings.prefix!r} before the text")
        if settings.lowercase:
            steps.append("put it in lower case")
        steps += [
            f"split it into tokens as {TOKENIZER_FILE} says, its special tokens included, without padding",
            f"keep {settings.max_length} tokens, special ones included, cut off at the {side}",
            f"in a batch, put {NO_TOKEN} behind the ids of shorter texts: the model leaves these places out",
        ]
        return {
            "preprocessing": preprocessing_to_json(settings),
            "tokenizer": TOKENIZER_FILE,
            "normalisation": "inside the model",
            "steps": steps,
        }

    def described(self) -> str:
        """Return the length."""
        return f"text of up to {self._settings.max_length} tokens, split by `{TOKENIZER_FILE}`"
