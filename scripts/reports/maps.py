"""A map of the features for the studio, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from reports.report import SMALL, Outcome, Report, draw_classes

Commands = Sequence[Sequence[object] | Callable[[Path], object]]
BUILD = ("build", "pets", "--cache", "c", *SMALL)
MAP = ("map", "c", "--out", "m")


def _of(each: int, *commands: Sequence[object]) -> Callable[[Path], Commands]:
    def arrange(folder: Path) -> Commands:
        draw_classes(folder / "pets", "cat", "dog", each=each)
        return [BUILD, *commands]

    return arrange


def _holds_every_image(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert outcome.json() == {"map": "m", "images": 8}
    assert (outcome.folder / "m").stat().st_size > 8 * 40


def _is_refused(words: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        assert words in outcome.refusal, outcome.refusal

    return check


REPORTS = (
    Report(
        "map-of-few", "umap and t-SNE libraries stop with a traceback on a handful of images",
        "eight images are laid out; nobody has to know what a perplexity is", _of(4, (*MAP, "--json")),
        _holds_every_image,
    ),
    Report(
        "map-of-four", "a map of four images ended in an error about perplexity",
        "one line: how many images a map needs, and how many there are", _of(2, MAP),
        _is_refused("a map needs at least 5 different images, got 4"),
    ),
    Report(
        "map-twice", "a second run replaced the map that the first had taken an hour for",
        "refused, until --overwrite is given", _of(4, MAP, MAP), _is_refused("--overwrite"),
    ),
)  # fmt: skip
