"""Which split a name means, of a folder or in a table's column: ``train``, ``Training set``, ``val2017``, ``dev``, …"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Of "eval" alone nothing says whether it is for choosing or for reporting; it is test, so that nothing is chosen on it.
_WORDS = {
    "train": 0, "training": 0,
    "val": 1, "valid": 1, "validation": 1, "validate": 1, "dev": 1, "development": 1,
    "test": 2, "testing": 2, "eval": 2, "evaluation": 2,
}  # fmt: skip
_EVALUATION = frozenset({"eval", "evaluation"})
_FILLERS = frozenset({"set", "data", "dataset", "split", "image", "img", "photo", "picture", "file", "folder"})


@dataclass(frozen=True, slots=True)
class SplitName:
    """A name that says a split: its index `code` into `SPLITS`; `plain` where it says nothing else (`seg_train` does).

    `evaluation`: it is called ``eval``, which is val where another name is the test split.
    """

    code: int
    plain: bool
    evaluation: bool


def split_name(name: str) -> SplitName | None:
    """Return the split that `name` says; None for none, or for several (``trainval``, ``train_test``)."""
    words = [_singular(word) for word in re.findall(r"[^\W\d_]+", name.casefold())]
    said = [word for word in words if word in _WORDS]
    if len({_WORDS[word] for word in said}) != 1:
        return None
    plain = all(word in _WORDS or word in _FILLERS for word in words)
    return SplitName(_WORDS[said[0]], plain, said[0] in _EVALUATION)


def split_codes(names: Iterable[str]) -> dict[str, int]:
    """Return name → index into `SPLITS` of those names that say a split and nothing else, read together."""
    said = {name: found for name in names if (found := split_name(name)) is not None and found.plain}
    return together(said)


def together(said: dict[str, SplitName]) -> dict[str, int]:
    """Return name → index into `SPLITS` of names that stand side by side: ``eval`` is val where another is test."""
    has_test = any(found.code == 2 and not found.evaluation for found in said.values())
    return {name: 1 if found.evaluation and has_test else found.code for name, found in said.items()}


def _singular(word: str) -> str:
    """Return a word without its plural s, and without a filler that is written onto it (``trainset``, ``testdata``)."""
    word = word.removesuffix("s")
    for filler in ("dataset", "data", "set"):
        if word.removesuffix(filler) in _WORDS:
            return word.removesuffix(filler)
    return word
