"""What each ecosystem's own tools read out of the files: labels, task, preprocessing, where they look for it."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
from export_models import saved_model, small_model
from typer.testing import CliRunner

from featcache.bundle.exporting import export
from featcache.cli import app
from featcache.engines.openvino_core import openvino_core
from featcache.errors import InputError
from featcache.formats.registry import find_target, target_names

LABELS = ("cat", "dog, wet", "Öl/„x“ <b>")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("metadata")
    saved_model(place / "model", model=small_model(classes=LABELS))
    export(place / "model", out=place / "bundle", formats=("onnx", "openvino"))
    return place / "bundle"


def test_onnx_runtime_reads_labels_preprocessing_and_lineage(bundle: Path) -> None:
    found = onnxruntime.InferenceSession(bundle / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(found["labels"]) == list(LABELS)
    described = json.loads((bundle / "preprocess.json").read_text())
    assert json.loads(found["preprocessing"]) == described["preprocessing"]
    assert json.loads(found["lineage"])["recipe"]["model"] == "test_efficientnet"


def test_openvino_reads_labels_and_kind(bundle: Path) -> None:

    model = openvino_core().read_model(bundle / "openvino" / "model.xml")
    info = {key: model.get_rt_info(["model_info", key]).astype(str) for key in ("labels", "model_type", "multilabel")}
    assert info["labels"].split(" ") == ["cat", "dog,_wet", "Öl/„x“_<b>"], "one word each, as its Model API splits them"
    assert (info["model_type"], info["multilabel"]) == ("Classification", "False")
    assert json.loads(model.get_rt_info(["framework", "labels"]).astype(str)) == list(LABELS)
    preprocessing = json.loads((bundle / "preprocess.json").read_text())["preprocessing"]
    assert json.loads(model.get_rt_info(["featcache", "preprocessing"]).astype(str)) == preprocessing


def test_the_hubs_own_reader_takes_the_model_card(bundle: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((bundle / "model_card.md").read_text(encoding="utf-8"))
    assert card.data.library_name == "featcache"
    assert card.data.pipeline_tag == "image-classification"
    assert {"onnx", "openvino", "test_efficientnet"} <= set(card.data.tags)
    assert card.data.base_model is None, "a name that is no address on the hub is a tag"
    assert "dog, wet" in card.text


@pytest.mark.target
def test_coreml_is_a_classifier_with_its_labels(bundle: Path, tmp_path: Path) -> None:
    from featcache.formats.interface import ModelFacts
    from featcache.graph.write import write_onnx

    target = find_target("coreml")
    if target.available() is not None:
        pytest.skip(f"coreml: {target.available()}; {target.needs}")
    model = small_model(classes=LABELS)
    facts = ModelFacts("small", model.classes, model.input, {}, quantized=False)
    files = target.convert(write_onnx(model, tmp_path / "model.onnx"), tmp_path, facts=facts).files
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString(files[1].read_bytes())
    assert spec.description.predictedFeatureName == "label"
    assert spec.description.predictedProbabilitiesName == "probabilities"
    assert json.loads(spec.description.metadata.userDefined["classes"]) == list(LABELS)


def test_all_is_every_installed_format_and_names_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    for name in target_names():
        kind = type(find_target(name))
        if name not in ("onnx", "openvino", "executorch", "mslite", "tensorrt"):
            monkeypatch.setattr(kind, "available", lambda _: "not here for this test")
    model = saved_model(tmp_path / "model")
    done = CliRunner().invoke(
        app, ["export", str(model), "--out", str(tmp_path / "bundle"), "--format", "all", "--json"]
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["formats"]) == ["onnx", "openvino", "tensorrt"]
    assert set(report["not_installed"]) == set(target_names()) - set(report["formats"])
    assert "featcache targets install executorch" in report["not_installed"]["executorch"]
    assert "not exported: ncnn: not here for this test" in done.stderr
    with pytest.raises(InputError, match="tarball"):
        export(model, out=tmp_path / "other", formats=("all", "tarball"))
    assert not (tmp_path / "other").exists()
