"""`TextTokenizer`: a ``tokenizer.json`` with a preprocessing's length and prefix; texts in, token ids out."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.errors import FormatError, InputError
from featcache.recipe import TextPreprocessing

TokenIds = npt.NDArray[np.int64]


def tokenizer_digest(tokenizer: bytes) -> str:
    """Return the sha256 (64 hexadecimal digits) of the bytes of a ``tokenizer.json``."""
    return hashlib.sha256(tokenizer).hexdigest()


class TextTokenizer:
    """Texts as token ids, special tokens included, never padded. Threads may share it.

    Parameters
    ----------
    tokenizer : bytes
        Of ``tokenizer.json``; padding and truncation that it holds are replaced.
    preprocessing : TextPreprocessing
        Whose digest must be that of `tokenizer`.

    Raises
    ------
    FormatError
        Where the bytes are no tokenizer, or another one.
    InputError
        Where the special tokens and the prefix leave no room below ``max_length``.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "my": 1, "card": 2}, unk_token="[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> data = words.to_str().encode()
    >>> settings = TextPreprocessing(tokenizer_sha256=tokenizer_digest(data), max_length=3)
    >>> [ids.tolist() for ids in TextTokenizer(data, settings).encode(["my card", "my lost card is gone"])]
    [[1, 2], [1, 0, 2]]
    """

    def __init__(self, tokenizer: bytes, preprocessing: TextPreprocessing) -> None:
        from tokenizers import Tokenizer
        from tokenizers.normalizers import Lowercase
        from tokenizers.normalizers import Sequence as Normalizers

        if tokenizer_digest(tokenizer) != preprocessing.tokenizer_sha256:
            raise FormatError(
                f"the tokenizer must be the one with the digest {preprocessing.tokenizer_sha256[:12]}…, got "
                f"{tokenizer_digest(tokenizer)[:12]}…: take the tokenizer.json that the rows were computed with"
            )
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(tokenizer)
        except Exception as error:
            raise FormatError(f"tokenizer.json must be a tokenizer of the library tokenizers: {error}") from error
        self.preprocessing = preprocessing
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # that of the file would cut the prefix, too
        special = self._tokenizer.num_special_tokens_to_add(False)
        prefix = len(self._tokenizer.encode(preprocessing.prefix, add_special_tokens=False).ids)
        if preprocessing.max_length <= special + prefix:
            raise InputError(
                f"max_length must leave room for a text beside {special} special tokens and {prefix} of the prefix, "
                f"got {preprocessing.max_length}"
            )
        self._tokenizer.enable_truncation(preprocessing.max_length, direction=preprocessing.truncation_side)
        if preprocessing.lowercase:
            before = self._tokenizer.normalizer
            self._tokenizer.normalizer = Normalizers([Lowercase(), *([before] if before is not None else [])])

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text, one to ``max_length`` of them; `InputError` for what is no text."""
        encodings = self._tokenizer.encode_batch_fast([self._prepared(text) for text in texts])
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @functools.cached_property
    def vocabulary(self) -> int:
        """One more than the largest id that a text can have."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(ids.values()) + 1

    def _prepared(self, text: str) -> str:
        most = self.preprocessing.max_characters
        if len(text) > most:
            text = text[:most] if self.preprocessing.truncation_side == "right" else text[-most:]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("a text must be whole characters, got half a surrogate pair: mend it") from error
        return f"{self.preprocessing.prefix}{text}"
