"""A BUNDLE from a stranger: whatever its files hold, `predict` ends in one line and opens nothing outside it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from export_models import saved_model, small_model
from PIL import Image

from featcache.bundle.exporting import export
from featcache.bundle.manifest import manifest_bytes, manifest_entries
from featcache.errors import FeatcacheError, FormatError, MissingError
from featcache.pipeline.page import write_report
from featcache.runtime import bench, evaluate, open_bundle, predict

WRONG: tuple[Any, ...] = (
    None, -1, 0, 0.5, 1e308, 10**30, 10**400, True, "x", [], {}, [None], {"a": None}, "../../etc/passwd"
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    model = saved_model(folder / "model", model=small_model())
    export(model, out=folder / "bundle", formats=("onnx", "openvino"))
    return folder / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 10, 90)).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def rewrite_manifest(bundle: Path) -> None:
    """State the files' present digests, as whoever changes a file on purpose does."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = manifest_entries(bundle)
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))


def refused(bundle: Path, photo: Path, format: str | None = None) -> str:
    """Return the line that `predict` refuses with."""
    with pytest.raises(FeatcacheError) as caught:
        predict(bundle, photo, format=format)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of a document, of lists to the first only."""
    yield path
    pairs = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the document with another value at `path`."""
    if not path:
        return value
    made = copy.deepcopy(document)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


@pytest.mark.parametrize("name", ["preprocess.json", "manifest.json"])
def test_any_value_of_any_other_kind_is_one_line_or_harmless(name: str, bundle: Path) -> None:
    """Every value of the document in turn is none, a list, a text, a huge number: read, or refused in one line."""
    document = json.loads((bundle / name).read_text())
    tried = 0
    for path in places(document):
        if path[:1] in (("files",), ("steps",), ("lineage",)):
            continue
        for value in WRONG:
            (bundle / name).write_text(json.dumps(changed(document, path, value)))
            tried += 1
            try:
                opened = open_bundle(bundle)
                opened.files(opened.format_named(None))
            except FeatcacheError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, path
    assert tried > 200


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("labels",), ["cat"]), (("labels",), ["cat", "dog", "bird"]), (("labels",), "xy"), (("labels", 0), 3),
        (("preprocessing", "height"), True), (("preprocessing", "height"), 33), (("preprocessing", "width"), 1 << 40),
        (("preprocessing", "resize"), 1e308), (("preprocessing", "std"), [1, None, 1]), (("task",), "poetry"),
        (("unknown",), {"score": "energy", "threshold": "x", "accepted": 0.9, "n": 3, "auroc": None, "held_out": []}),
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_fit_the_model_are_refused(
    path: tuple[Any, ...], value: object, bundle: Path, photo: Path
) -> None:
    """Labels that are more, fewer or no texts, sizes that the graph does not take."""
    document = json.loads((bundle / "preprocess.json").read_text())
    (bundle / "preprocess.json").write_text(json.dumps(changed(document, path, value)))
    refused(bundle, photo)


@pytest.mark.parametrize(("format", "file"), [("onnx", "model.onnx"), ("openvino", "openvino/model.xml")])
def test_a_changed_model_is_refused(format: str, file: str, bundle: Path, photo: Path) -> None:
    """By its digest; where that was rewritten too, by the runtime that cannot read it."""
    data = (bundle / file).read_bytes()
    for changed_bytes in (b"", b"not a model", data[: len(data) // 2], b"\xff" * 5000):
        (bundle / file).write_bytes(changed_bytes)
        assert "must have the sha256 stated for it" in refused(bundle, photo, format)
        rewrite_manifest(bundle)
        refused(bundle, photo, format)
        with pytest.raises(FeatcacheError):
            evaluate(bundle, photo.parent, format=format)
        with pytest.raises(FeatcacheError):
            bench(bundle, formats=[format], seconds=0.1)
        (bundle / file).write_bytes(data)
        rewrite_manifest(bundle)
    assert predict(bundle, photo, format=format)[0].label


def test_another_graph_is_refused(bundle: Path, photo: Path) -> None:
    """A valid ONNX file whose inputs are called otherwise."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "negate", value[:1], value[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(made, bundle / "model.onnx")
    rewrite_manifest(bundle)
    with pytest.raises(FormatError, match=r"'model\.onnx' must give logits"):
        predict(bundle, photo)


@pytest.mark.parametrize("file", ["model.onnx", "preprocess.json", "manifest.json"])
def test_a_link_to_a_file_outside_is_not_followed(file: str, bundle: Path, photo: Path, tmp_path: Path) -> None:
    """Even to the very same bytes."""
    (bundle / file).rename(tmp_path / "outside")
    (bundle / file).symlink_to(tmp_path / "outside")
    assert "a link that leaves it" in refused(bundle, photo)


def test_a_lost_model_says_so(bundle: Path, photo: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(MissingError, match=r"must hold model\.onnx"):
        predict(bundle, photo)


def test_a_report_of_any_values_makes_a_page_or_one_line(bundle: Path) -> None:
    """Numbers, lists and texts where others are due."""
    document = json.loads((bundle / "report.json").read_text())
    for path in places(document):
        for value in WRONG:
            (bundle / "report.json").write_text(json.dumps(changed(document, path, value)))
            try:
                write_report(bundle / "report.json")
            except FeatcacheError as error:
                assert "\n" not in str(error)
