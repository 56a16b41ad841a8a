"""report.html: made from report.json alone, self-contained, and deaf to what strangers write into names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_models import saved_model
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.bundle.exporting import export
from featcache.bundle.title import report_title
from featcache.errors import CorruptError, ExistsError, FormatError, MissingError
from featcache.pipeline.axis import linear_ticks
from featcache.pipeline.page import render_report, write_report

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>\u202e&amp;"
PIXEL = "data:image/png;base64,iVBORw0KGgo="


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def said(self) -> str:
        return " ".join(self.texts)


def document(label: str = "cat", path: str = "test/cat/1.jpg") -> dict[str, Any]:
    return {
        "format": "featcache.report",
        "version": 1,
        "title": f"2 classes: {label}",
        "created": "2026-01-02T03:04:05+00:00",
        "weights": "file.safetensors",
        "random_weights": False,
        "classes": [label, "dog"],
        "machine": {"processor": "A Processor", "threads": 2, "memory_bytes": 8_000_000_000, "versions": {"a": "2"}},
        "table": [
            {"model": "float", "accuracy": 0.875, "bytes": 8_900_000, "latency_ms": 4.0},
            {"model": "int8", "accuracy": 0.75, "bytes": 2_400_000, "latency_ms": 5.5},
        ],
        "shipped": "int8 of float",
        "notes": [f"a note on {label}"],
        "run": {
            "train": {"kind": "linear", "test_accuracy": 0.875, "nonzero_fraction": 0.25},
            "merge": {"parameters": 2_236_682, "bytes": 8_900_000, "max_abs_diff": 1e-6},
            "prune": None,
            "quantize": {
                "bytes_before": 8_900_000, "bytes_after": 2_400_000, "accuracy_float": 0.875,
                "accuracy_before_refit": 0.5, "accuracy_after_refit": 0.75, "macs": 300_000_000,
                "macs_before": 310_000_000,
            },
        },
        "export": {
            "formats": {
                "onnx": {
                    "files": ["model.onnx"], "bytes": 2_400_000, "executed": True, "reason": None,
                    "runtime": "onnxruntime 1", "reference": "torch float32", "n_compared": 16, "max_abs_diff": 1e-5,
                    "top1_agreement": None, "accuracy": 0.75, "latency_ms": {"median": 5.5, "p95": 6.0, "threads": 2},
                    "resident_bytes": 21_300_000, "peak_activation_bytes": 1_234_000,
                },
                "coreml": {
                    "files": ["m.mlpackage"], "bytes": 1, "executed": False, "reason": "no runtime on Linux",
                    "latency_ms": None, "accuracy": None, "max_abs_diff": None,
                },
            }
        },
        "evaluation": {
            "accuracy": 0.75, "n": 4, "split": "test", "classes": [label, "dog"],
            "per_class": {
                label: {"n": 2, "correct": 1, "accuracy": 0.5}, "dog": {"n": 0, "correct": 0, "accuracy": None},
            },
            "confusion": [[1, 1], [0, 0]],
            "mistakes": [{"path": path, "label": label, "predicted": "dog", "probability": 0.9, "thumbnail": PIXEL}],
        },
        "steps": [{"verb": "merge", "weights": label}],
    }  # fmt: skip


def test_what_was_measured_is_there_to_read() -> None:
    said = re.sub(r"\s+", " ", Page(render_report(document())).said)
    expected = [
        "75.0%",
        "87.5%",
        "2.40 MB",
        "5.50 ms",
        "1 of 2",
        "dog",
        "test/cat/1.jpg",
        "A Processor",
        "300.00 M",
        "310.00 M",
    ]
    expected += ["not run: no runtime on Linux", "onnxruntime 1", "Confusion matrix", "2.24 M", "int8 of float"]
    expected += ["21.30 MB", "values on the way: 1.23 MB", "Power is not measured"]
    for words in expected:
        assert words in said, words


def test_a_penalty_path_is_drawn_with_the_chosen_value() -> None:
    points = [
        {"l1": l1, "l2": 0.0, "group_l1": 0.0, "value": value, "features_used": used, "chosen": l1 == 0.1}
        for l1, value, used in ((1.0, 0.5, 0), (0.1, 0.9, 40), (0.01, 0.8, 100))
    ]
    shown = document()
    shown["run"]["train"] |= {"path": points, "num_features": 100, "score": "accuracy"}
    page = Page(render_report(shown))
    lines = [a for tag, a in page.tags if tag == "polyline"]
    assert [len(str(a["points"]).split()) for a in lines] == [3, 3]
    accuracy = [float(corner.split(",")[1]) for corner in str(lines[0]["points"]).split()]
    assert accuracy[1] < accuracy[0] < accuracy[2]  # from the weakest to the strongest; up is better
    assert "chosen: 0.1" in page.said
    assert "features used" in page.said
    shown["run"]["train"]["path"] = points[:1]
    assert "Penalty path" not in render_report(shown)


def path_page(points: list[dict[str, Any]], *, score: str = "accuracy") -> Page:
    shown = document()
    shown["run"]["train"] |= {"path": points, "num_features": 100, "score": score}
    return Page(render_report(shown))


def texts_of(page: Page) -> list[str]:
    """The texts inside the drawing of the path, in order."""
    return page.texts[page.texts.index("Penalty path") : page.texts.index("What each step measured")]


def test_penalty_plot_of_close_scores_spans_where_they_lie() -> None:
    """Scores of 94 to 97 % fill their panel: its axis starts at 94 %, not at 0."""
    values = {1e-4: 0.941, 1e-3: 0.969, 1e-2: 0.968, 1e-1: 0.955}
    page = path_page([{"l2": l2, "value": value, "features_used": 100} for l2, value in values.items()])
    (curve,) = [attributes for tag, attributes in page.tags if tag == "polyline"]  # the features never change
    heights = [float(corner.split(",")[1]) for corner in str(curve["points"]).split()]
    grid = [float(str(a["y1"])) for tag, a in page.tags if tag == "line" and a.get("class") == "grid"]
    assert max(heights) - min(heights) > 0.75 * (max(grid) - min(grid))
    assert {"94%", "97%"} <= set(texts_of(page)) and "0%" not in texts_of(page)


def test_penalty_plot_names_both_axes() -> None:
    """The penalty with its direction and powers of ten below, the score and the features beside their panels."""
    page = path_page(
        [{"l1": l1, "l2": 0.0, "value": 0.9 - l1, "features_used": 90 - 80 * l1} for l1 in (1e-5, 1e-3, 0.1)],
        score="mean_average_precision",
    )
    named = [attributes for tag, attributes in page.tags if tag == "text" and attributes.get("class") == "axis"]
    assert len(named) == 3
    said = texts_of(page)
    assert {"held-out mean average precision", "features used", "L1 penalty (stronger to the right)"} <= set(said)
    assert [words for words in said if words in ("10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1")] == [
        "10⁻⁵", "10⁻⁴", "10⁻³", "0.01", "0.1",
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.10001), (-4.0, 7e9), (0.0, 0.0), (1e-9, 2e-9), (-3.0, -3.0)])
def test_axis_spans_its_values_with_few_round_numbers(low: float, high: float) -> None:
    """Whatever the values, from one tick at most `low` to one at least `high`, six at the most."""
    ticks = linear_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1] and 2 <= len(ticks) <= 6
    assert len(set(np.round(np.diff(ticks) / (ticks[1] - ticks[0]), 6))) == 1


@pytest.mark.parametrize(
    ("classes", "task", "title"),
    [
        (("a", "b", "c"), "classification", "clothing10: tells 3 classes of photos apart"),
        (("a", "b"), "multilabel", "clothing10: finds which of 2 labels a photo has"),
        (("age",), "regression", "clothing10: estimates age from a photo"),
        (("x", "y"), "regression", "clothing10: estimates 2 values from a photo"),
    ],
)
def test_title_is_the_data_sets_name_and_what_the_model_does(classes: tuple[str, ...], task: str, title: str) -> None:
    """For each task; without a known data set, the model itself."""
    assert report_title("clothing10", classes, task=task) == title
    assert report_title(None, classes, task=task) == title.replace("clothing10:", "This model")
    assert f"<h1>{title}</h1>" in render_report({**document(), "title": title})


def test_random_weights_are_called_random() -> None:
    assert "Random weights" not in render_report(document())
    shown = render_report({**document(), "random_weights": True, "weights": "random:7"})
    assert "Random weights" in shown
    assert "random:7" in shown


def test_the_page_asks_nobody_anything() -> None:
    page = Page(render_report(document()))
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in render_report(document())
    assert "@import" not in render_report(document())
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'")


def tag_counts(html: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(attributes)) for tag, attributes in Page(html).tags]


def test_names_from_strangers_stay_text() -> None:
    shown = render_report(document(label=EVIL, path=EVIL))
    assert tag_counts(shown) == tag_counts(render_report(document()))
    assert "<script" not in shown
    assert "\u202e" not in shown


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_changes_the_structure_of_the_page(label: str, path: str) -> None:
    if label == "dog":
        return
    assert tag_counts(render_report(document(label, path))) == tag_counts(render_report(document()))


@pytest.mark.parametrize(
    "thumbnail", ["http://evil.example/a.png", "data:text/html;base64,AAAA", f'{PIXEL}" onerror="x', "", None, 5]
)
def test_pictures_that_are_no_pictures_are_left_out(thumbnail: object) -> None:
    changed = document()
    changed["evaluation"]["mistakes"][0]["thumbnail"] = thumbnail
    assert "img" not in {tag for tag, _ in Page(render_report(changed)).tags}


def test_missing_and_odd_values_leave_sections_out_and_never_crash() -> None:
    assert "Machine" not in render_report({"format": "featcache.report"})
    for key in document():
        for odd in (None, [], {}, "text", 3, [None], {"a": None}, [[1]]):
            render_report({**document(), key: odd})
    changed = document()
    changed["evaluation"]["confusion"] = [[1, "x"], [2]]
    assert "Confusion" not in render_report(changed)


def test_many_classes_are_drawn() -> None:
    labels = [f"class {i}" for i in range(200)]
    changed = document()
    changed["evaluation"] |= {
        "classes": labels,
        "per_class": {label: {"n": 2, "correct": i % 3, "accuracy": (i % 3) / 2} for i, label in enumerate(labels)},
        "confusion": [[2 * (i == j) for j in range(200)] for i in range(200)],
    }
    tags = [tag for tag, _ in Page(render_report(changed)).tags]
    assert tags.count("rect") == 200
    assert "details" in tags


def test_html_is_written_from_the_json_of_a_bundle_alone(tmp_path: Path) -> None:
    export(saved_model(tmp_path / "model"), out=tmp_path / "bundle")
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (alone / "report.json").write_bytes((tmp_path / "bundle" / "report.json").read_bytes())
    html = write_report(alone / "report.json")
    assert html == alone / "report.html"
    page = html.read_text(encoding="utf-8")
    assert "test_efficientnet" in page
    assert "Random weights" in page
    with pytest.raises(ExistsError):
        write_report(alone / "report.json")
    assert write_report(alone / "report.json", overwrite=True).read_text(encoding="utf-8") == page


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        write_report(tmp_path / "report.json")
    for text, error in (("[", CorruptError), ("[]", CorruptError), (json.dumps({"format": "other"}), FormatError)):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(error, match=r"report\.json"):
            write_report(tmp_path / "report.json")
    assert not (tmp_path / "report.html").exists()
