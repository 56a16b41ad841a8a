"""``labels.txt``: the classes as device runtimes read them, a line each."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str) -> str:
    """Return `text` with each run of line breaks and control characters as one space."""
    return _CONTROL.sub(" ", text)


def labels_text(classes: tuple[str, ...]) -> str:
    """Return ``labels.txt``: one label per line, line n (from 0) for logit n. The exact names stand in the JSON."""
    return "".join(f"{one_line(label)}\n" for label in classes)
