"""Which columns of a table hold the texts, the labels and the splits: those named, or the ones called as usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featcache.errors import InputError

# The first that is there is taken. What names of classes are called stands before what their numbers are.
TEXT_NAMES = (
    "text", "sentence", "review", "utterance", "content", "document", "message", "comment", "tweet", "post", "body",
    "question", "query", "description", "headline", "title", "input",
)  # fmt: skip
LABEL_NAMES = (
    "label_text", "label_name", "label", "labels", "category", "intent", "class", "class_name", "topic", "sentiment",
    "emotion", "target", "tag", "tags", "stars", "rating", "score",
)  # fmt: skip
SPLIT_NAMES = ("split",)


@dataclass(frozen=True, slots=True)
class TextColumns:
    """Places of a table's columns, from 0, None for one that is not there; `notes`: what was guessed among several."""

    text: int
    label: int | None
    split: int | None
    notes: tuple[str, ...] = ()


def find_columns(
    names: Sequence[str], source: str, *, text_column: str | None = None, label_column: str | None = None
) -> TextColumns:
    """Return where the columns of a table stand.

    Parameters
    ----------
    names : sequence of str
        The header, whatever its case.
    source : str
        The table, for errors.
    text_column, label_column : str, optional
        The user's choice; by default the first of `TEXT_NAMES` and `LABEL_NAMES` that is there. A table without a
        column of labels is unlabelled.

    Returns
    -------
    TextColumns
        With a note where several columns could have been meant.

    Raises
    ------
    InputError
        Where a named column is not there or stands twice, no column is called like a text's, or one would be both.

    Examples
    --------
    >>> find_columns(["id", "Review", "stars"], "reviews.csv")
    TextColumns(text=1, label=2, split=None, notes=())
    >>> find_columns(["id", "note"], "a.csv")
    Traceback (most recent call last):
    featcache.errors.InputError: 'a.csv' must have a column of texts, it has 'id', 'note': name it with --text-column
    """
    keys = [name.strip().casefold() for name in names]
    notes: list[str] = []
    text = _place(names, keys, text_column, TEXT_NAMES, source, "text", notes)
    if text is None:
        raise InputError(f"{source!r} must have a column of texts, it has {_listed(names)}: name it with --text-column")
    label = _place(names, keys, label_column, LABEL_NAMES, source, "label", notes)
    if label == text:
        raise InputError(f"the texts and the labels of {source!r} must be two columns, got {names[text]!r} for both")
    split = _place(names, keys, None, SPLIT_NAMES, source, "split", notes)
    return TextColumns(text, label, split if split not in (text, label) else None, tuple(notes))


def _place(
    names: Sequence[str],
    keys: Sequence[str],
    chosen: str | None,
    usual: Sequence[str],
    source: str,
    what: str,
    notes: list[str],
) -> int | None:
    """Return the place of the `chosen` column, else of the first of the `usual` ones, None where there is none."""
    if chosen is not None:
        places = [i for i, name in enumerate(names) if name == chosen] or [
            i for i, key in enumerate(keys) if key == chosen.strip().casefold()
        ]
        if not places:
            raise InputError(f"--{what}-column must be a column of {source!r}, got {chosen!r}: it has {_listed(names)}")
    else:
        found = [name for name in usual if name in keys]
        if not found:
            return None
        places = [i for i, key in enumerate(keys) if key == found[0]]
        if len(found) > 1:
            others = ", ".join(repr(names[keys.index(name)]) for name in found[1:])
            notes.append(f"the {what}s are read from {names[places[0]]!r}, not from {others}: --{what}-column")
    if len(places) > 1:
        raise InputError(f"{source!r} must have one column {names[places[0]]!r}, its header has {len(places)}")
    return places[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", …" if len(names) > 12 else "")
