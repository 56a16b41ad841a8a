"""The card of a search: every candidate in the table, a dot each in two drawings, nothing that a name could break."""

from __future__ import annotations

from typing import Any

from featcache.pipeline.candidates import candidates_section


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "steps": [name], "val_accuracy": 0.9, "drop": 0.0, "drop_low": -0.01, "drop_high": 0.01,
        "meets": True, "bytes": 1_000_000, "latency_ms": 2.0, **changes,
    }  # fmt: skip


def test_each_candidate_is_a_row_and_a_dot_in_both_drawings() -> None:
    entries = [
        entry("float", steps=[]), entry("int8", bytes=300_000, val_accuracy=0.89),
        entry("bad", meets=False, bytes=200_000),
    ]  # fmt: skip
    card = candidates_section({"candidates": entries, "chosen": "int8"})
    assert card.count("<circle") == 2 * 3
    assert card.count('class="wrong"') == 2
    assert card.count('r="7"') == 2
    assert "<b>int8</b>" in card and "300 kB" in card
    assert card.count("<svg") == 2


def test_names_are_text_and_nothing_else() -> None:
    card = candidates_section({"candidates": [entry("<script>alert(1)</script>"), entry("b", bytes=5)]})
    assert "<script>" not in card
    assert "&lt;script&gt;" in card


def test_a_single_candidate_or_a_broken_one_is_no_card() -> None:
    assert candidates_section({}) == ""
    assert candidates_section({"candidates": [entry("a")]}) == ""
    assert candidates_section({"candidates": [entry("a"), entry("b", bytes="many")]}) == ""
    assert candidates_section({"candidates": "none"}) == ""


def test_equal_candidates_are_drawn_too() -> None:
    card = candidates_section({"candidates": [entry("a"), entry("b")]})
    assert "nan" not in card and "inf" not in card
