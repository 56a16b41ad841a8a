"""What the user meant by a folder or a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reports.report import SMALL, Outcome, Report, draw, draw_classes

Commands = Sequence[Sequence[object] | Callable[[Path], object]]
BUILD = ("build", "pets", "--cache", "c", *SMALL)
INFO = ("info", "c", "--json")


def _built(outcome: Outcome) -> dict[str, Any]:
    """Return the one data set that ``info --json`` shows."""
    assert outcome.status == 0, outcome.stderr
    [dataset] = outcome.json()["datasets"]
    return dict(dataset)


def _folders(*folders: str, each: int = 2) -> Callable[[Path], Commands]:
    def arrange(folder: Path) -> Commands:
        draw_classes(folder / "pets", *folders, each=each)
        return [BUILD, INFO]

    return arrange


def _are_splits(outcome: Outcome) -> None:
    dataset = _built(outcome)
    assert dataset["classes"] == ["cat", "dog"], dataset
    assert dataset["samples"] == 8, dataset


def _is_unwrapped(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert "note: the classes are read from ds/ds/, which wraps them" in outcome.lines


def _wrapped(folder: Path) -> Commands:
    draw_classes(folder / "pets", "ds/ds/cat", "ds/ds/dog", each=2)
    return [BUILD]


def _flat_test(folder: Path) -> Commands:
    draw_classes(folder / "pets", "train/cat", "train/dog", each=6)
    draw(folder / "pets" / "test" / "a.jpg")
    return [BUILD, ("train", "c", "--out", "h", "--json")]


def _claims_no_test(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert outcome.json()["test_accuracy"] is None


def _failed_class(folder: Path) -> Commands:
    draw_classes(folder / "pets", "cat", each=6)
    for number in range(5):
        place = folder / "pets" / "dog" / f"{number}.heic"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"\0\0\0\x18ftypheic" + bytes([number]) * 40)
    return [(*BUILD, "--json")]


def _says_first(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    [note] = outcome.json()["notes"]
    assert note.startswith("train will refuse this data set: "), note
    assert "'dog' (5 of 5 failed: " in note, note
    assert "HEIC" in note, note
    assert f"note: {note}" in outcome.lines


def _one_class(folder: Path) -> Commands:
    draw_classes(folder / "pets", "cat", each=3)
    return [("run", "pets", "--out", "out")]


def _refused_before_extraction(outcome: Outcome) -> None:
    assert "at least two classes, got ['cat']" in outcome.refusal
    assert not (outcome.folder / "out" / "cache").exists()


def _table(text: str | bytes, *options: str) -> Callable[[Path], Commands]:
    def arrange(folder: Path) -> Commands:
        for number, name in enumerate(("a.jpg", "b.jpg", "img/c.jpg", "img/d.jpg")):
            draw(folder / "pets" / name, seed=number)
        (folder / "pets" / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return [("build", "pets/t.csv", "--cache", "c", *SMALL, *options, "--json")]

    return arrange


def _all_four(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["images"], report["failed"]) == (4, 0), report


def _refuses(*words: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        for word in words:
            assert word in outcome.refusal, outcome.refusal
        assert not (outcome.folder / "c").exists()  # nothing was begun

    return check


def _notes(*words: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        assert outcome.status == 0, outcome.stderr
        for word in words:
            assert any(word in note for note in outcome.json()["notes"]), outcome.json()["notes"]

    return check


def _paths_only(folder: Path) -> Commands:
    draw_classes(folder / "pets", "train/cat", "train/dog", each=4)
    (folder / "pets" / "paths.csv").write_text("path\ntrain/cat/0.jpg\ntrain/dog/1.jpg\n")
    return [BUILD, ("train", "c", "--out", "h"), ("predict", "h", "pets/paths.csv", "--cache", "c", "--json")]


def _two_predictions(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    assert [entry["label"] is not None for entry in outcome.json()] == [True, True]


def _two_of_one_name(folder: Path) -> Commands:
    for seed, place in enumerate(("a", "b")):
        draw(folder / place / "pets" / "cat" / "0.jpg", seed=seed)
    return [("build", f"{place}/pets", "--cache", "c", *SMALL) for place in ("a", "b")]


def _first_is_kept(outcome: Outcome) -> None:
    assert "'pets'" in outcome.refusal
    assert "--dataset" in outcome.refusal
    assert [path.name for path in (outcome.folder / "c" / "samples").iterdir()] == ["pets.safetensors"]


def _moved(folder: Path) -> Commands:
    draw_classes(folder / "pets", "train/cat", "train/dog", each=4)
    return [
        BUILD,
        lambda place: (place / "pets").rename(place / "animals"),
        ("build", "animals", "--cache", "c", *SMALL),
        ("train", "c", "--out", "h"),
        ("build", "animals", "--cache", "c", *SMALL, "--json"),
    ]


def _same_data_set(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    report = outcome.json()
    assert (report["dataset"], report["extracted"], report["reused"]) == ("pets", 0, 8), report


def _unfinished_numbers(folder: Path) -> Commands:
    targets = ["1.5", "nan", "2", "inf", "1_000", "", "3", "2.5", "1", "4", "0.5", "3.5"]
    lines = ["path,label,split"]
    for number, target in enumerate(targets):
        draw(folder / "pets" / f"{number}.jpg", seed=number)
        lines.append(f"{number}.jpg,{target},{'test' if number > 9 else 'train'}")
    (folder / "pets" / "t.csv").write_text("\n".join(lines) + "\n")
    build = ("build", "pets/t.csv", "--cache", "c", "--task", "regression", *SMALL)
    return [build, ("train", "c", "--out", "h", "--l2", "1", "--json")]


def _finite(outcome: Outcome) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    assert outcome.status == 0, outcome.stderr
    result = json.loads(outcome.stdout, parse_constant=refuse)
    assert result["n_train"] <= 6, result


REPORTS = (
    Report(
        "training-testing",
        "folders named training/ and testing/ were read as two classes",
        "they are the splits train and test",
        _folders("training/cat", "training/dog", "testing/cat", "testing/dog"),
        _are_splits,
    ),
    Report(
        "macosx-beside-splits",
        "a folder __MACOSX/ from a zip file made train/ and val/ into classes",
        "it is passed over",
        _folders("train/cat", "train/dog", "val/cat", "val/dog", "__MACOSX/train"),
        _are_splits,
    ),
    Report(
        "stray-beside-splits",
        "sample_images/ made train/ and val/ into classes",
        "it is left out, with a note",
        _folders("train/cat", "train/dog", "val/cat", "val/dog", "sample_images"),
        _are_splits,
    ),
    Report(
        "wrapper-folders",
        "unpacked twice, the folder holds ds/ds/cat and ds/ds/dog: one class, ds",
        "the wrappers are taken off, with a note",
        _wrapped,
        _is_unwrapped,
    ),
    Report(
        "flat-test-folder",
        "a folder test/ of images without classes",
        "a head is trained, no test accuracy is claimed",
        _flat_test,
        _claims_no_test,
    ),
    Report(
        "class-that-failed-whole",
        "all photos of one class were HEIC, which training said only later, without saying why",
        "build names the class, how many failed and why",
        _failed_class,
        _says_first,
    ),
    Report(
        "run-of-one-class",
        "features were computed for an hour before training refused the one class",
        "refused before an image is read",
        _one_class,
        _refused_before_extraction,
    ),
    Report(
        "excel-table",
        "a table from Excel: mark, sep=, semicolons, CRLF, capitals and spaces in the header, backslashes, other case",
        "it is read",
        _table(b"\xef\xbb\xbfsep=;\r\nPath ; LABEL\r\na.jpg; cat\r\nB.JPG;dog\r\nimg\\c.jpg;cat\r\nimg/D.jpg;dog\r\n"),
        _all_four,
    ),
    Report(
        "utf16-table",
        'a table saved as "Unicode text", separated by tabs',
        "it is read",
        _table("path\tlabel\na.jpg\tcat\nb.jpg\tdog\nimg/c.jpg\tcat\nimg/d.jpg\tdog\n".encode("utf-16")),
        _all_four,
    ),
    Report(
        "ids-without-header",
        "a table without header that names photos by their ids",
        "each id is the one file of that name; a note says how the table was read",
        _table("a,cat\nb,dog\nc,cat\nd,dog\n"),
        _notes("has no header", "'a' is 'a.jpg'"),
    ),
    Report(
        "latin1-table",
        "a table in Latin-1 was built, and training ended in a traceback",
        "refused by build, by name, with the row",
        _table(b"path,label\na.jpg,cat\nb.jpg,caf\xe9\n"),
        _refuses("row 3", "Latin-1", "UTF-8"),
    ),
    Report(
        "no-path-found",
        "no path of the table was there: 'has none among 0 other files'",
        "the first failing row and why",
        _table("path,label\nx/1.jpg,cat\nx/2.jpg,dog\n"),
        _refuses("row 2", "'x/1.jpg'", "No such file"),
    ),
    Report(
        "one-path-two-labels",
        "one photo stood in two rows under different labels",
        "both rows are named",
        _table("path,label\na.jpg,cat\nb.jpg,dog\na.jpg,dog\n"),
        _refuses("row 2 with the label 'cat'", "row 4 with 'dog'"),
    ),
    Report(
        "unquoted-comma",
        "a comma in a label without quotes cut it",
        "the row is named",
        _table("path,label\na.jpg,cat, world\nb.jpg,dog\n"),
        _refuses("row 2", "quotes"),
    ),
    Report(
        "semicolon-in-one-label",
        "one label 'rock; pop' made the whole table multi-label without a word",
        "a note names the row",
        _table("path,label\na.jpg,rock; pop\nb.jpg,jazz\nimg/c.jpg,rock\n"),
        _notes("multi-label: 1 of 3 rows with several between ';', first row 2 ('rock; pop')"),
    ),
    Report(
        "paths-only",
        "a table with only a column path could not be predicted",
        "a prediction for each row",
        _paths_only,
        _two_predictions,
    ),
    Report(
        "two-data-sets-of-one-name",
        "a second folder called pets replaced the first in the cache",
        "refused, naming --dataset; the first is kept",
        _two_of_one_name,
        _first_is_kept,
    ),
    Report(
        "moved-data-set",
        "after the folder was renamed, the cache held two data sets and every verb asked for --dataset",
        "it is the same data set, no row is extracted, train needs no flag",
        _moved,
        _same_data_set,
    ),
    Report(
        "numbers-that-are-none",
        "nan, inf, 1_000 and empty targets of a regression",
        "they are left out of every split, the JSON is valid",
        _unfinished_numbers,
        _finite,
    ),
)
