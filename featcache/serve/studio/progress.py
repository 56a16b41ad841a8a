"""How far a command has come, read from the bar that it draws on a terminal."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

# features:  45%|████▌     | 450/1000 [00:03<00:04, 120.32image/s]
_BAR = re.compile(
    r"^(?P<what>[^:|]*): +\d+%\|[^|]*\| (?P<done>[\d.]+[kMG]?)/(?P<total>[\d.]+[kMG]?) "
    r"\[(?P<passed>[\d:]+)<(?P<left>[\d:]+|\?),\s*(?P<rate>[^\],]*)"
)
_TIMES = {"k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` of `what`; `rate`: as shown, such as ``120image/s``; `seconds_left`: None where unknown."""

    what: str
    done: float
    total: float
    rate: str
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def read_bar(line: str) -> Progress | None:
    """Return what a drawn bar says, None for another line.

    >>> read_bar("features:  45%|####      | 450/1000 [00:03<00:04, 120.32image/s]")
    Progress(what='features', done=450.0, total=1000.0, rate='120.32image/s', seconds_left=4.0)
    """
    found = _BAR.match(line)
    if found is None:
        return None
    left = None if found["left"] == "?" else _seconds(found["left"])
    return Progress(found["what"], _number(found["done"]), _number(found["total"]), found["rate"].strip(), left)


def _number(text: str) -> float:
    return float(text.rstrip("kMG")) * _TIMES.get(text[-1], 1.0)


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return seconds
