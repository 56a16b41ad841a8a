"""The page of what 10⁸ and 10⁹ images cost is what its script makes of what was measured."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from scale.page import MEASURED, PAGE, REMAKE, page

from featcache.system.json import parse_json


def test_scale_page_is_what_was_measured() -> None:
    """No figure on it is written by hand."""
    measured = parse_json(MEASURED.read_bytes())
    assert PAGE.read_text(encoding="utf-8") == page(measured), f"the page is stale, make it again: {REMAKE}"


def test_figures_follow_what_was_measured() -> None:
    """Twice the images a second halve the hours."""
    measured = parse_json(MEASURED.read_bytes())
    measured["ray"]["together_images_per_second"]["median"] *= 2

    def hours(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.startswith("| machine hours ")]
        return float(line.split("|")[2].replace(",", ""))

    assert abs(hours(page(measured)) * 2 / hours(PAGE.read_text(encoding="utf-8")) - 1) < 0.02


def test_what_was_measured_names_no_place_of_the_machine() -> None:
    """And is small enough to be read."""
    text = MEASURED.read_text()
    assert len(text) < 30_000
    assert not any(sign in text for sign in ("/home", "/tmp", "/root", "127.0.0.1"))
