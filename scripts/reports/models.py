"""What an image is, and artefacts that are damaged, hostile, moved or made twice at once."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reports.report import SMALL, Outcome, Report, draw, draw_classes

Commands = list[list[object]]


@functools.cache
def _made() -> Path:
    """Return a folder with photos/, cache, head, model and bundle of a small untrained network, made once."""
    import featcache

    place = Path(tempfile.mkdtemp(prefix="featcache-reports-"))
    draw_classes(place / "photos", "cat", "dog", each=20)
    featcache.build_cache(place / "photos", place / "cache", backbone="test_resnet", weights="random:0", engine="torch")
    head = featcache.train_head(place / "cache", head=featcache.LinearOptions(l2=1e-6))
    featcache.heads.save_head(head.head, place / "head")
    featcache.merge(head.head, place / "cache", out=place / "model")
    featcache.export(place / "model", out=place / "bundle")
    return place


def _with(folder: Path, *names: str) -> Path:
    """Copy some of what `_made` made into `folder`, and return it."""
    for name in names:
        shutil.copytree(_made() / name, folder / name)
    return folder


def _right(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr[-2000:]
    assert "Traceback" not in outcome.stderr


def _refused(*words: str) -> Callable[[Outcome], None]:
    """Return a check that the command is refused in one line with these words."""

    def check(outcome: Outcome) -> None:
        for word in words:
            assert word in outcome.refusal, (word, outcome.refusal)

    return check


def _rows(extracted: int) -> Callable[[Outcome], None]:
    """Return a check that a build computed so many rows and has one for each of the 40 photos."""

    def check(outcome: Outcome) -> None:
        _right(outcome)
        values = outcome.json()
        assert values["extracted"] == extracted, values
        assert values["rows"] == 40, values

    return check


# --- images ---------------------------------------------------------------------------------------------------------


def _odd_pictures(folder: Path) -> Commands:
    from PIL import Image, PngImagePlugin

    _with(folder, "bundle")
    photo = draw(folder / "photo.jpg", size=(80, 60))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "x" * 3_000_000, zip=True)
    with Image.open(photo) as image:
        image.save(folder / "text.png", pnginfo=texts, icc_profile=b"p" * 2_000_000)
        image.save(folder / "two.mpo", "MPO", save_all=True, append_images=[image])
    deep = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(deep).save(folder / "twelve.png")
    return [["predict", "bundle", "text.png", "two.mpo", "twelve.png", "--json"]]


def _all_read(outcome: Outcome) -> None:
    _right(outcome)
    assert [entry.get("reason") for entry in outcome.json()] == [None] * 3, outcome.stdout


def _padded(folder: Path) -> Commands:
    _with(folder, "bundle")
    data = draw(folder / "whole.jpg", size=(200, 150)).read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    return [["predict", "bundle", "cut.jpg"]]


# --- the default flow -----------------------------------------------------------------------------------------------


def _weak_penalty(folder: Path) -> Commands:
    _with(folder, "model", "cache", "photos")
    return [["export", "model", "--out", "b", "--cache", "cache", "--images", "photos", "--json"]]


def _agreement(outcome: Outcome) -> None:
    _right(outcome)
    entry = outcome.json()["formats"]["onnx"]
    assert entry["max_abs_diff"] <= entry["tolerance"], entry
    assert entry["disagreements"] == 0, entry
    assert entry["max_probability_diff"] < 1e-3, entry


_running: dict[Path, subprocess.Popen[bytes]] = {}


def _at_once(folder: Path) -> Commands:
    draw_classes(folder / "photos", "cat", "dog", each=4)
    command = ["build", "photos", "--cache", "c", *SMALL, "--wait", "120", "--json"]
    code = "from featcache.cli import main; main()"
    with open(folder / "first.txt", "w", encoding="utf-8") as out:  # it goes on while the second one runs
        first = subprocess.Popen([sys.executable, "-c", code, *command], cwd=folder, stdout=out, stderr=out)
    _running[folder] = first
    return [command]


def _joined(outcome: Outcome) -> None:
    assert _running.pop(outcome.folder).wait() == 0, (outcome.folder / "first.txt").read_text(encoding="utf-8")
    _right(outcome)
    assert outcome.json()["rows"] == 8, outcome.stdout


def _equal_photos(folder: Path) -> Commands:
    from PIL import Image

    for number in range(12):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
        path.write_bytes(path.read_bytes() + bytes([number]))
    import featcache

    featcache.build_cache(folder / "photos", folder / "c", backbone="test_resnet", weights="random:0", engine="torch")
    head = featcache.train_head(folder / "c", head=featcache.LinearOptions(l2=0.1)).head
    featcache.merge(head, folder / "c", out=folder / "m")
    return [["quantize", "m", "--cache", "c", "--out", "q", "--json"]]


def _precision(precision: str) -> Callable[[Path], Commands]:
    def arrange(folder: Path) -> Commands:
        return [
            *_equal_photos(folder)[:-1],
            ["quantize", "m", "--cache", "c", "--out", "q", "--precision", precision, "--json"],
        ]

    return arrange


def _half_the_bytes(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.stderr
    result = outcome.json()
    assert result["bytes_after"] < 0.55 * result["bytes_before"], result
    assert (result["method"], result["gained"], result["lost"]) == ("fp16", 0, 0), result


def _odd_input(size: str) -> Callable[[Path], Commands]:
    def arrange(folder: Path) -> Commands:
        draw_classes(folder / "photos", "cat", "dog", each=3)
        network = ["--backbone", "test_vit", "--weights", "random:0", "--engine", "torch"]
        return [["build", "photos", "--cache", "c", *network, "--model-kwargs", f"img_size={size}", "--json"]]

    return arrange


# --- damaged and hostile --------------------------------------------------------------------------------------------


def _scrambled(folder: Path) -> Path:
    """Copy the cache, with nothing but random bytes behind the first 8192 of its rows."""
    _with(folder, "cache", "photos")
    (rows,) = (folder / "cache" / "store").glob("rows-*.lmdb")
    data = rows.read_bytes()
    rows.write_bytes(data[:8192] + np.random.default_rng(0).bytes(len(data) - 8192))
    return folder


def _repaired(folder: Path) -> Commands:
    from featcache.verification import verify

    assert not verify(_scrambled(folder) / "cache", repair=True).ok
    return [["build", "photos", "--cache", "cache", "--dataset", "photos", "--json"]]


def _without_layout(folder: Path) -> Path:
    (_scrambled(folder) / "cache" / "store" / "layout.json").unlink()  # as a cache of an older version
    return folder


def _hopeless(folder: Path) -> Commands:
    _without_layout(folder)
    return [["build", "photos", "--cache", "cache"]]


def _anew(folder: Path) -> Commands:
    _without_layout(folder)
    return [["build", "photos", "--cache", "cache", "--overwrite", "--json"]]


def _nested(name: str, *verb: str) -> Callable[[Path], Commands]:
    """Return what puts 200,000 brackets into an artefact's document and runs a verb on it."""

    def arrange(folder: Path) -> Commands:
        _with(folder, name.partition("/")[0], "photos", "cache")
        (folder / name).write_text("[" * 200_000)
        return [list(verb)]

    return arrange


def _no_number(folder: Path) -> Commands:
    document = _document(folder, "preprocess.json")
    document["preprocessing"]["std"] = [1e308, None, 1]
    return _rewritten(folder, "preprocess.json", document)


def _document(folder: Path, name: str) -> Any:
    _with(folder, "bundle", "photos")
    return json.loads((folder / "bundle" / name).read_text(encoding="utf-8"))


def _rewritten(folder: Path, name: str, document: Any) -> Commands:
    (folder / "bundle" / name).write_text(json.dumps(document), encoding="utf-8")
    return [["predict", "bundle", "photos"]]


def _changed_model(folder: Path) -> Commands:
    _with(folder, "bundle", "photos")
    (folder / "bundle" / "model.onnx").write_bytes(b"\0" * 500)
    return [["predict", "bundle", "photos"]]


def _link_outside(folder: Path) -> Commands:
    _with(folder, "bundle", "photos")
    (folder / "bundle" / "model.onnx").rename(folder / "elsewhere.onnx")
    (folder / "bundle" / "model.onnx").symlink_to("../elsewhere.onnx")
    return [["predict", "bundle", "photos"]]


# --- moved, and named otherwise -------------------------------------------------------------------------------------


def _moved(*verb: str) -> Callable[[Path], Commands]:
    """Return what runs a verb on a model whose photos are not where they were cached."""

    def arrange(folder: Path) -> Commands:
        _with(folder, "model", "cache")
        import featcache

        draw_classes(folder / "old", "cat", "dog", each=20)
        featcache.build_cache(folder / "old", folder / "cache", dataset="photos")  # no row is new
        (folder / "old").rename(folder / "new")
        return [[*verb, "--json"]]

    return arrange


def _several_paths(folder: Path) -> Commands:
    _with(folder, "bundle")
    draw(folder / "a.jpg", seed=1)
    draw(folder / "b.png", seed=2)
    draw(folder / "c.jpg", seed=3).rename(folder / "upload")
    return [["predict", "bundle", "a.jpg", "b.png", "upload", "--json"]]


def _in_order(outcome: Outcome) -> None:
    _right(outcome)
    assert [entry["path"] for entry in outcome.json()] == ["a.jpg", "b.png", "upload"]
    assert all(entry["label"] for entry in outcome.json())


def _all_fail(folder: Path) -> Commands:
    _with(folder, "bundle")
    (folder / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / "photos" / name).write_text("not an image")
    return [["predict", "bundle", "photos"]]


def _unlabelled_test(folder: Path) -> Commands:
    _with(folder, "bundle")
    draw_classes(folder / "ds" / "val", "cat", "dog", each=2)
    (folder / "ds" / "t.csv").write_text(
        "path,label,split\nval/cat/0.jpg,cat,val\nval/dog/0.jpg,dog,val\nval/cat/1.jpg,,test\n", encoding="utf-8"
    )
    return [["evaluate", "bundle", "ds/t.csv"]]


REPORTS = (
    Report(
        "odd-pictures",
        "a PNG with megabytes of text or profile, an MPO, a 12-bit picture in 16 bits fail or come out black",
        "all three are read",
        _odd_pictures, _all_read,
    ),
    Report(
        "cut-and-padded", "a photo cut by a download and padded with zeros is read as half grey",
        "it is called truncated, and nothing is left to predict: exit 1", _padded, _refused("truncated JPEG"),
    ),
    Report(
        "weak-penalty-export", "export ends without a bundle: differs by 0.000153 where 0.0001 is allowed",
        "the tolerance is a share of the logits' spread; classes and probabilities agree", _weak_penalty, _agreement,
    ),
    Report(
        "two-builds-at-once", "of two builds of one new cache the second says that it exists already",
        "the second waits, then extends the same cache", _at_once, _joined,
    ),
    Report(
        "black-photos", "calibration on black photos ends in LinAlgError", "the model is quantized",
        _equal_photos, _right,
    ),
    Report(
        "half-precision", "quantize knows INT8 alone: there is no file of half the bytes with the same answers",
        "--precision fp16 writes one", _precision("fp16"), _half_the_bytes,
    ),
    Report(
        "rows-of-convolutions", "integers found at run time, of a network of convolutions, would shrink nothing",
        "one line says what they are for", _precision("int8-dynamic"), _refused("linear layers", "--precision int8"),
    ),
    Report(
        "input-not-of-patches", "test_vit with img_size=[100,100] is an AssertionError",
        "one line says what the network takes", _odd_input("[100,100]"), _refused("'test_vit'", "100x100", "img_size"),
    ),
    Report(
        "input-not-square", "img_size=[96,160] has no way to say the resize",
        "the whole image is scaled to it", _odd_input("[96,160]"), _right,
    ),
    Report(
        "scrambled-store", "random bytes in the store: every verb says build again, none does",
        "verify --repair keeps what checksums prove, build makes the rest", _repaired, _rows(40),
    ),
    Report(
        "hopeless-store", "nothing is left of the store, and no verb says how to begin anew",
        "build names --overwrite", _hopeless, _refused("--overwrite"),
    ),
    Report(
        "begin-anew", "a damaged cache cannot be built again", "build --overwrite does, as it was asked for",
        _anew, _rows(40),
    ),
    Report(
        "nested-model", "200,000 brackets in model.json are a RecursionError", "one line",
        _nested("model/model.json", "export", "model", "--out", "b"), _refused("model.json", "nested"),
    ),
    Report(
        "nested-head", "200,000 brackets in head.json are a RecursionError", "one line",
        _nested("head/head.json", "merge", "head", "cache", "--out", "m"), _refused("head.json", "nested"),
    ),
    Report(
        "no-number", "null and 1e308 where a deviation is due are a traceback", "one line",
        _no_number, _refused("std", "export the bundle again"),
    ),
    Report(
        "changed-onnx", "a damaged model.onnx in predict is an InvalidProtobuf traceback",
        "one line: it is not the file that was exported", _changed_model, _refused("model.onnx", "sha256"),
    ),
    Report(
        "linked-onnx", "model.onnx as a link to a file outside is followed", "it is refused",
        _link_outside, _refused("model.onnx", "link that leaves it"),
    ),
    Report(
        "photos-moved", "after the photos moved, quantize says that none is unchanged",
        "it names the folder that is gone and --images", _moved("quantize", "model", "--cache", "cache", "--out", "q"),
        _refused("old", "--images"),
    ),
    Report(
        "photos-found-again", "there is no way to say where the photos are now", "--images does",
        _moved("export", "model", "--cache", "cache", "--out", "b", "--images", "new"), _right,
    ),
    Report(
        "several-paths", "predict takes one path, and none without an extension",
        "several, in their order, also without extension", _several_paths, _in_order,
    ),
    Report(
        "nothing-readable", "predict of a folder where every image fails exits 0", "exit 1",
        _all_fail, _refused("none of 2"),
    ),
    Report(
        "unlabelled-test", "evaluate on an unlabelled test split does not say what to do", "it names --split val",
        _unlabelled_test, _refused("--split val"),
    ),
)  # fmt: skip
