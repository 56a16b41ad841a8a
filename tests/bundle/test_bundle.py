"""Bundles: what is in them, that they are whole or absent, and that no byte of one changes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from export_models import saved_model, small_model
from PIL import Image

from featcache.bundle import exporting as bundle_module
from featcache.bundle.archive import unpack
from featcache.bundle.exporting import export
from featcache.bundle.manifest import verify_bundle
from featcache.errors import CorruptError, ExistsError, FormatError, InputError, MissingError, VerificationError
from featcache.formats.interface import Runner
from featcache.formats.onnx import OnnxTarget
from featcache.heads.unknown import UnknownRule
from featcache.images.load import decode
from featcache.model.merged import MergedModel
from featcache.runtime import evaluate, open_bundle, predict
from featcache.verification import verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    export(model, out=model.parent / "bundle", formats=("onnx", "openvino"))
    return model.parent / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_preprocess_document_says_what_the_decoder_does(exported: Path, tmp_path: Path) -> None:
    """Whoever reads images by the document alone sees transparent and 16-bit pictures as the rows saw them."""
    (step,) = [step for step in json.loads(contents(exported)["preprocess.json"])["steps"] if step.startswith("decode")]
    assert "transparency is laid over white" in step and "the highest 8 of 16 bits are kept" in step
    Image.new("RGBA", (1, 1), (200, 100, 0, 0)).save(tmp_path / "glass.png")
    assert decode((tmp_path / "glass.png").read_bytes()).ravel().tolist() == [255, 255, 255]
    Image.fromarray(np.array([[0x12FF]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert decode((tmp_path / "deep.png").read_bytes()).ravel().tolist() == [0x12] * 3


def test_bundle_holds_what_a_device_needs(exported: Path) -> None:
    files = contents(exported)
    assert {
        "model.onnx", "openvino/model.xml", "openvino/model.bin", "labels.txt", "preprocess.json", "model_card.md",
        "golden/golden.json", "golden/00.jpg", "report.json", "manifest.json",
    } <= set(files)  # fmt: skip
    assert files["labels.txt"] == b"cat\ndog\n"
    manifest = json.loads(files["manifest.json"])
    assert set(manifest["files"]) == set(files) - {"manifest.json", "report.json"}
    assert manifest["lineage"]["recipe"]["model"] == "test_efficientnet"
    assert json.loads(files["preprocess.json"])["tensors"]["onnx"]["inputs"]["image"]["layout"] == "NHWC"
    assert b"random weights" in files["model_card.md"]


def test_the_unknown_rule_of_the_head_goes_with_the_bundle_and_is_used(tmp_path: Path) -> None:
    made = small_model()
    rule = UnknownRule("energy", 1e6, 0.95, 40, 0.8, ("dog",))  # no image is that familiar
    head = dataclasses.replace(made.fitted_head, unknown=rule)
    with_rule = MergedModel(made.backbone, head, recipe=made.recipe, lineage=made.lineage)
    export(saved_model(tmp_path / "model", model=with_rule), out=tmp_path / "bundle", formats=("onnx",))
    assert open_bundle(tmp_path / "bundle").unknown == rule
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "photos" / "a.png")
    (found,) = predict(tmp_path / "bundle", tmp_path / "photos")
    assert found.unknown


def test_two_exports_differ_in_the_report_alone(model: Path, exported: Path, tmp_path: Path) -> None:
    export(model, out=tmp_path / "again", formats=("onnx", "openvino"))
    first, second = contents(exported), contents(tmp_path / "again")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == ["report.json"]


def test_report_has_the_promised_keys(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    for entry in report["export"]["formats"].values():
        assert set(entry) >= {
            "files", "bytes", "executed", "reason", "reference", "n_compared", "max_abs_diff", "top1_agreement",
            "accuracy", "latency_ms",
        }  # fmt: skip
        assert entry["executed"] is True
        assert entry["max_abs_diff"] <= 1e-4
        assert entry["top1_agreement"] is None, "16 images are too few to state a share"
        assert set(entry["latency_ms"]) >= {"median", "p95", "threads"}
    assert report["random_weights"] is True


def test_verified_on_the_test_split_of_images(model: Path, photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for folder in ("cat", "dog"):
            shutil.copytree(photos / folder, tmp_path / "data" / split / folder)
    for path in sorted((tmp_path / "data" / "test" / "cat").iterdir())[:3]:
        path.unlink()
    (tmp_path / "data" / "test" / "cat" / "broken.jpg").write_bytes(b"no image")
    report = export(model, out=tmp_path / "bundle", images=tmp_path / "data")
    assert (report.verified_on, report.formats["onnx"].n_compared) == ("test", 21)
    assert report.evaluation is not None
    assert report.evaluation.n == 21
    assert report.formats["onnx"].accuracy == report.evaluation.accuracy
    assert [path for path, _ in report.evaluation.failures] == ["test/cat/broken.jpg"]


class BrokenRunner(Runner):
    """Gives the right logits of another class order: the classic mistake between training and device."""

    def __init__(self, right: Runner) -> None:
        self.right = right

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.right.run(images)[:, ::-1]

    def close(self) -> None:
        self.right.close()


def test_a_file_that_does_something_else_leaves_no_bundle(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_right = OnnxTarget.open
    monkeypatch.setattr(OnnxTarget, "open", lambda *args, **options: BrokenRunner(open_right(*args, **options)))
    with pytest.raises(VerificationError, match="'onnx' must give torch's logits"):
        export(model, out=tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_whose_weights_changed_leaves_no_bundle(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    from onnx import numpy_helper

    write = bundle_module.write_onnx

    def write_damaged(*args: object, **options: object) -> Path:
        path = write(*args, **options)  # type: ignore[arg-type]
        graph = onnx.load(path)
        tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == "head.weight")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(graph, path)
        return path

    monkeypatch.setattr(bundle_module, "write_onnx", write_damaged)
    with pytest.raises(VerificationError):
        export(model, out=tmp_path / "bundle", formats=("onnx", "openvino"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_longer_gives_its_golden_logits_is_refused(model: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(model, tmp_path / "model"))
    golden = changed / "golden" / "golden.json"
    document = json.loads(golden.read_text())
    document["images"][3]["logits"][0] += 1.0
    golden.write_text(json.dumps(document))
    with pytest.raises(VerificationError, match="golden"):
        export(changed, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_existing_bundle_is_kept_unless_told(model: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle)
    with pytest.raises(ExistsError, match="--overwrite"):
        export(model, out=bundle)
    with monkeypatch.context() as broken:
        open_right = OnnxTarget.open
        broken.setattr(OnnxTarget, "open", lambda *args, **options: BrokenRunner(open_right(*args, **options)))
        with pytest.raises(VerificationError):
            export(model, out=bundle, overwrite=True)
    assert contents(bundle) == before
    export(model, out=bundle, overwrite=True)
    assert "openvino/model.xml" not in contents(bundle)


def test_without_golden_samples_random_colours_are_compared(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "model", golden=False, model=small_model(classes=("a\nb", "<b>")))
    report = export(path, out=tmp_path / "bundle")
    assert report.verified_on == "synthetic"
    assert not (tmp_path / "bundle" / "golden").exists()
    assert (tmp_path / "bundle" / "labels.txt").read_text() == "a b\n<b>\n"
    assert open_bundle(tmp_path / "bundle").classes == ("a\nb", "<b>")
    assert "<b>" not in (tmp_path / "bundle" / "model_card.md").read_text().replace("\\<b\\>", "")


def test_verify_finds_every_one_of_200_random_tampers(bundle: Path) -> None:
    assert verify_bundle(bundle)[1] == ()
    rng = np.random.default_rng(0)
    names = sorted(set(contents(bundle)) - {"report.json"})
    missed = []
    for round_ in range(200):
        name = names[rng.integers(len(names))]
        path = bundle / name
        before = path.read_bytes()
        kind = ("change", "append", "cut", "remove", "add")[rng.integers(5)]
        extra = bundle / f"extra-{round_}"
        if kind == "change":
            position = int(rng.integers(len(before)))
            changed = bytearray(before)
            changed[position] ^= int(rng.integers(1, 256))
            path.write_bytes(changed)
        elif kind == "append":
            path.write_bytes(before + b"\n")
        elif kind == "cut":
            path.write_bytes(before[:-1])
        elif kind == "remove":
            path.unlink()
        else:
            extra.write_bytes(b"")
        if verify(bundle).ok:
            missed.append((kind, name))
        path.write_bytes(before)
        extra.unlink(missing_ok=True)
    assert missed == []
    assert verify(bundle).ok


def test_verify_does_not_follow_links_or_leave_the_bundle(bundle: Path, tmp_path: Path) -> None:
    labels = bundle / "labels.txt"
    (tmp_path / "outside.txt").write_bytes(labels.read_bytes())
    labels.unlink()
    labels.symlink_to(tmp_path / "outside.txt")
    assert [problem for problem in verify_bundle(bundle)[1] if "symbolic link" in problem]


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "golden\\..\\evil", "C:/evil", "./labels.txt", ""]
)
def test_paths_in_a_manifest_cannot_leave_the_bundle(bundle: Path, name: str) -> None:
    from featcache.bundle.manifest import manifest_bytes

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["formats"]["onnx"]["files"] = [name]
    (bundle / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(CorruptError, match="plain relative path"):
        open_bundle(bundle)
    assert not verify(bundle).ok


def test_what_is_no_bundle_is_said_to_be_none(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="featcache export"):
        open_bundle(tmp_path / "nothing")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(FormatError, match="99"):
        open_bundle(bundle)
    (bundle / "manifest.json").write_text("[")
    with pytest.raises(CorruptError, match="JSON"):
        open_bundle(bundle)
    with pytest.raises(MissingError, match="none of them"):
        verify(tmp_path)


def zipped(bundle: Path, archive: Path, *, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in {**contents(bundle), **(extra or {})}.items():
            file.writestr(name, data)
    return archive


def test_unpack_gives_the_bundle_back(bundle: Path, tmp_path: Path) -> None:
    out = unpack(zipped(bundle, tmp_path / "bundle.zip"), tmp_path / "out")
    assert contents(out) == contents(bundle)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "golden/../../evil"])
def test_unpack_refuses_to_leave_its_folder(bundle: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(bundle, tmp_path / "bundle.zip", extra={name: b"evil"})
    with pytest.raises(InputError, match="plain relative path"):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "deep" / "out").exists()


def test_unpack_refuses_links_and_changed_bundles(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(zipped(bundle, tmp_path / "link.zip"), "a") as file:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="no links"):
        unpack(tmp_path / "link.zip", tmp_path / "out")
    (bundle / "labels.txt").write_bytes(b"dog\ncat\n")
    with pytest.raises(VerificationError, match=r"labels\.txt"):
        unpack(zipped(bundle, tmp_path / "changed.zip"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.slow
def test_real_photos_get_torchs_classes_from_every_format(
    clothing10: Path, clothing10_cache: Path, tmp_path: Path
) -> None:
    from featcache.model.merging import merge
    from featcache.train.fit import train_head
    from featcache.train.options import LinearOptions

    train_head(clothing10_cache, head=LinearOptions(l2=0.05)).save(tmp_path / "head")
    merge(tmp_path / "head", clothing10_cache, out=tmp_path / "model")
    report = export(tmp_path / "model", out=tmp_path / "bundle", formats=("onnx", "openvino"), images=clothing10)
    for entry in report.formats.values():
        assert entry.n_compared == 372
        assert entry.max_abs_diff is not None
        assert entry.max_abs_diff <= 1e-4
        assert entry.top1_agreement is not None
        assert entry.top1_agreement >= 0.997
        assert entry.accuracy is not None
        assert entry.accuracy >= 0.85
    assert evaluate(tmp_path / "bundle", clothing10).accuracy == report.formats["onnx"].accuracy
