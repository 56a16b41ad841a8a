"""Images without a label, of every task, are counted as such in `evaluate`, as `train` leaves them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.datasets.labelled import labelled_images
from featcache.errors import InputError
from featcache.runtime.evaluation import score


def table(folder: Path, *labels: str) -> Path:
    lines = ["path,label"]
    for number, label in enumerate(labels):
        (folder / f"{number}.jpg").write_bytes(b"x")
        lines.append(f"{number}.jpg,{label}")
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("task", "labels", "classes", "n"),
    [
        ("classification", ("cat", "", "dog", "zebra"), ("cat", "dog"), 2),
        ("multilabel", ("red;round", "", "round", "square"), ("red", "round"), 2),
        ("regression", ("1.5", "", "nan", "2", "inf", "1_000"), ("target",), 2),
    ],
)
def test_images_without_a_label_are_counted_and_not_scored(
    tmp_path: Path, task: str, labels: tuple[str, ...], classes: tuple[str, ...], n: int
) -> None:
    chosen = labelled_images(table(tmp_path, *labels), classes=classes, task=task)
    logits = np.zeros((len(chosen), len(classes)), dtype=np.float32)
    evaluation = score(chosen, logits, {}, classes=classes, task=task, format="onnx")
    assert (evaluation.n, evaluation.unlabelled) == (n, len(labels) - n)
    json.dumps(evaluation.to_json(), allow_nan=False)


@pytest.mark.parametrize(("task", "classes"), [("multilabel", ("red", "round")), ("regression", ("target",))])
def test_nothing_to_measure_on_is_refused_for_every_task(tmp_path: Path, task: str, classes: tuple[str, ...]) -> None:
    chosen = labelled_images(table(tmp_path, "", ""), classes=classes, task=task)
    assert not chosen.has_labels
    with pytest.raises(InputError, match="got none of 2"):
        score(chosen, np.zeros((2, len(classes)), np.float32), {}, classes=classes, task=task, format="onnx")


def test_a_class_of_the_model_is_neither_a_wrapper_nor_a_split(tmp_path: Path) -> None:
    for name in ("train/2019/a.jpg", "train/2020/b.jpg", "test/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    chosen = labelled_images(tmp_path, classes=("test", "train"), task="classification")
    assert chosen.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("val", "advice"), [("a", "name --split val, or put"), ("", "'test': put")])
def test_an_unlabelled_test_split_names_another_only_where_that_has_labels(
    tmp_path: Path, val: str, advice: str
) -> None:
    """A way out that is one."""
    rows = [("0.jpg", "", "test"), ("1.jpg", val, "val"), ("2.jpg", "", "train")]
    for name, _, _ in rows:
        (tmp_path / name).write_bytes(b"x")
    file = tmp_path / "images.csv"
    file.write_text("path,label,split\n" + "".join(f"{name},{label},{split}\n" for name, label, split in rows))
    chosen = labelled_images(file, classes=("a", "b"), task="classification")
    assert chosen.labelled_splits == (("val",) if val else ())
    with pytest.raises(InputError, match=advice):
        score(chosen, np.zeros((1, 2), dtype=np.float32), {}, classes=("a", "b"), task="classification", format="onnx")
