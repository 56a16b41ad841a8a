"""The runtime: predictions and evaluations of a bundle from image files, without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_photo
from export_models import saved_model, small_model
from many_places import upload, write_parquet, write_photos, write_shards
from typer.testing import CliRunner

from featcache.bundle.exporting import export
from featcache.cache import open_cache
from featcache.cli import app
from featcache.errors import InputError, MissingError
from featcache.extract.build import build_cache
from featcache.heads import save_head
from featcache.images.load import load_image
from featcache.model.directory import load_model
from featcache.model.merging import merge
from featcache.runtime import bench, evaluate, open_bundle, predict
from featcache.runtime.prediction import describe
from featcache.system.objects import ObjectPath
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("model") / "model", model=small_model(gain=200.0))


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    export(model, out=model.parent / "bundle", formats=("onnx", "openvino"))
    return model.parent / "bundle"


def expected_classes(model: Path, paths: list[Path]) -> list[str]:
    merged = load_model(model)
    pixels = np.stack([load_image(path.read_bytes(), merged.preprocessing, decoder="pillow") for path in paths])
    with torch.inference_mode():
        return [merged.classes[i] for i in merged(torch.from_numpy(pixels))[0].argmax(1).tolist()]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_predict_says_what_torch_says(model: Path, bundle: Path, photos: Path, format: str) -> None:
    found = predict(bundle, photos, format=format, top=1)
    paths = sorted(photos.rglob("*.jpg"))
    assert [entry.path for entry in found] == [path.relative_to(photos).as_posix() for path in paths]
    assert [entry.label for entry in found] == expected_classes(model, paths)
    assert all(len(entry.top) == 1 and entry.top[0] == (entry.label, entry.probability) for entry in found)


def test_a_model_predicts_as_its_bundle(model: Path, bundle: Path, photos: Path) -> None:
    by_model, by_bundle = predict(model, photos), predict(bundle, photos)
    assert [entry.label for entry in by_model] == [entry.label for entry in by_bundle]
    np.testing.assert_allclose(
        [entry.probability for entry in by_model], [entry.probability for entry in by_bundle], atol=1e-3
    )


def test_predict_of_a_named_pipe_says_what_it_is(bundle: Path, tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to would hang."""
    os.mkfifo(tmp_path / "pipe.jpg")
    arguments = [sys.executable, "-c", "from featcache.cli import main; main()", "predict", bundle, "pipe.jpg"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "pipe.jpg: is not a regular file" in done.stderr.splitlines()[-1]


def test_predict_takes_paths_and_names_on_standard_input(bundle: Path, photos: Path) -> None:
    """In their order; a file without an extension is looked into."""
    (photos / "cat" / "upload").write_bytes((photos / "cat" / "00.jpg").read_bytes())
    code = "from featcache.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", bundle, "cat/upload", "-", "dog/01.jpg", "--json"],
        input="cat/03.jpg\n\ndog/00.jpg\n", cwd=photos, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = [entry["path"] for entry in json.loads(done.stdout)]
    assert paths == ["cat/upload", "cat/03.jpg", "dog/00.jpg", "dog/01.jpg"]


def test_bad_images_are_entries_with_a_reason(bundle: Path, photos: Path) -> None:
    (photos / "cat" / "broken.jpg").write_bytes(b"not an image")
    (photos / "cat" / "empty.png").write_bytes(b"")
    found = {entry.path: entry for entry in predict(bundle, photos)}
    assert len(found) == 26
    for name in ("cat/broken.jpg", "cat/empty.png"):
        assert found[name].label is None
        assert found[name].reason
        assert json.loads(json.dumps(found[name].to_json()))["label"] is None
    assert sum(entry.label is None for entry in found.values()) == 2


def test_images_may_be_a_file_several_files_or_a_csv(bundle: Path, photos: Path, tmp_path: Path) -> None:
    one, two = photos / "cat" / "00.jpg", photos / "dog" / "01.jpg"
    assert [entry.path for entry in predict(bundle, one)] == [str(one)]
    assert [entry.path for entry in predict(bundle, [two, one])] == [str(two), str(one)]
    (photos / "list.csv").write_text("path,label\ndog/01.jpg,dog\n")
    assert [entry.path for entry in predict(bundle, photos / "list.csv")] == ["dog/01.jpg"]
    with pytest.raises(MissingError):
        predict(bundle, photos / "nothing.jpg")
    with pytest.raises(InputError, match="must name an image a line, none is there"):
        predict(bundle, bundle / "labels.txt")  # a .txt is a list
    with pytest.raises(InputError, match="image file"):
        predict(bundle, bundle / "manifest.json")
    with pytest.raises(MissingError, match="bundle or a model"):
        predict(tmp_path, photos)


def test_evaluate_counts_what_predict_says(bundle: Path, photos: Path) -> None:
    found = evaluate(bundle, photos)
    right = [entry.label == entry.path.split("/")[0] for entry in predict(bundle, photos)]
    assert (found.n, found.accuracy) == (24, sum(right) / 24)
    assert found.confusion is not None
    assert sum(map(sum, found.confusion)) == 24
    assert sum(entry["correct"] for entry in found.per_class.values()) == sum(right)  # type: ignore[misc]
    assert len(found.mistakes) == 24 - sum(right)
    assert {"accuracy", "n", "per_class", "confusion"} <= set(json.loads(json.dumps(found.to_json())))


def test_evaluate_takes_the_test_split_and_matches_labels_by_name(bundle: Path, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos / "cat", data / "train" / "cat")
    shutil.copytree(photos / "dog", data / "test" / "dog")
    shutil.copytree(photos / "cat", data / "test" / "axolotl")  # sorts first: indices of the folder are not the model's
    found = evaluate(bundle, data)
    assert (found.split, found.n, found.unlabelled, found.unknown_classes) == ("test", 12, 12, ("axolotl",))
    assert found.per_class["cat"]["n"] == 0
    assert found.per_class["cat"]["accuracy"] is None
    assert evaluate(bundle, data, split="train").per_class["cat"]["n"] == 12
    shutil.rmtree(data / "test")
    with pytest.raises(InputError, match="split 'test'"):
        evaluate(bundle, data)


def test_evaluate_refuses_other_classes(bundle: Path, photos: Path) -> None:
    (photos / "cat").rename(photos / "fish")
    (photos / "dog").rename(photos / "bird")
    with pytest.raises(InputError, match="classes of the model"):
        evaluate(bundle, photos)


def test_evaluate_records_bad_images(bundle: Path, photos: Path) -> None:
    (photos / "cat" / "broken.jpg").write_bytes(b"not an image")
    found = evaluate(bundle, photos)
    assert found.n == 24
    assert [path for path, _ in found.failures] == ["cat/broken.jpg"]


def test_unknown_rule_answers_none_of_these() -> None:
    from featcache.heads.unknown import UnknownRule

    rule = UnknownRule("max_logit", 1.0, accepted=0.9, n=10)
    sure, unsure = describe(["a", "b"], np.array([[4, 0], [0.1, 0]], np.float32), ("x", "y"), "classification",
                            top=2, unknown=rule)  # fmt: skip
    assert (sure.unknown, unsure.unknown) == (False, True)
    assert unsure.to_json()["unknown"] is True


def test_bench_times_every_format(bundle: Path) -> None:
    found = bench(bundle, seconds=0.05, threads=1)
    assert [entry.format for entry in found] == ["onnx", "openvino"]
    for entry in found:
        assert entry.latency_ms is not None
        assert 0 < entry.latency_ms.median <= entry.latency_ms.p95
        assert entry.latency_ms.threads == 1
        assert entry.bytes == sum(path.stat().st_size for path in open_bundle(bundle).files(entry.format))


def test_unknown_format_is_refused(bundle: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="onnx, openvino"):
        predict(bundle, photos, format="tflite")


def test_a_bundle_is_used_without_torch(bundle: Path, photos: Path) -> None:
    code = (
        "import sys\n"
        "from featcache.runtime import bench, evaluate, predict\n"
        f"predict({str(bundle)!r}, {str(photos)!r})\n"
        f"evaluate({str(bundle)!r}, {str(photos)!r}, format='openvino')\n"
        f"bench({str(bundle)!r}, seconds=0.01)\n"
        "banned = {'torch', 'timm', 'sklearn', 'onnx'} & set(sys.modules)\n"
        "sys.exit(f'loaded {banned}' if banned else 0)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_stored_features_answer_for_known_images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.extract.build import build_cache
    from featcache.heads.linear import LinearHead
    from featcache.model.merging import merge

    build_cache(photos, tmp_path / "cache", backbone="test_efficientnet", weights="random:0", precision="fp32")
    with open_cache(tmp_path / "cache") as cache:
        weight = np.random.default_rng(0).standard_normal((2, cache.num_features)).astype(np.float32) * 200
        head = LinearHead(
            classes=("cat", "dog"), weight=weight, bias=np.zeros(2, np.float32), fingerprint=cache.fingerprint
        )
    save_head(head, tmp_path / "head")
    merge(tmp_path / "head", tmp_path / "cache", out=tmp_path / "model", golden="none")
    computed = predict(tmp_path / "model", photos)
    write_photo(photos / "cat" / "new.jpg", seed=999)
    (photos / "dog" / "00.jpg").rename(photos / "dog" / "moved.jpg")
    by_model = {entry.path: entry for entry in predict(tmp_path / "model", photos, cache=tmp_path / "cache")}
    assert [path for path, entry in by_model.items() if not entry.cached] == ["cat/new.jpg"]  # 24 hits, one miss
    assert not any(entry.cached for entry in computed)
    (photos / "cat" / "new.jpg").rename(tmp_path / "new.jpg")
    with monkeypatch.context() as patched:  # a hit runs no backbone
        patched.setattr(sys.modules["featcache.runtime.prediction"], "open_classifier", None)
        assert all(entry.cached for entry in predict(tmp_path / "model", photos, cache=tmp_path / "cache"))
    (tmp_path / "new.jpg").rename(photos / "cat" / "new.jpg")
    by_head = {entry.path: entry for entry in predict(tmp_path / "head", photos, cache=tmp_path / "cache")}
    for entry in computed:
        name = "dog/moved.jpg" if entry.path == "dog/00.jpg" else entry.path
        for found in (by_model[name], by_head[name]):
            assert found.probability == pytest.approx(entry.probability, abs=0.05)
    assert by_model["cat/new.jpg"].label is not None
    assert by_head["cat/new.jpg"].label is None
    assert "not in the cache" in str(by_head["cat/new.jpg"].reason)


def test_a_bundle_takes_no_cache(bundle: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a MODEL or a HEAD"):
        predict(bundle, photos, cache=tmp_path)


def test_a_regression_is_evaluated_by_its_mean_absolute_error(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(24):
        split = ("train", "train", "val", "test")[number % 4]
        write_photo(tmp_path / f"{number}.jpg", seed=number)
        lines.append(f"{number}.jpg,{number / 4},{split}")
    table = tmp_path / "sizes.csv"
    table.write_text("\n".join(lines) + "\n")
    cache = tmp_path / "cache"
    build_cache(table, cache, backbone="test_efficientnet", weights="random:0", task="regression")
    train_head(cache, head=LinearOptions(l2=1.0)).save(tmp_path / "head")
    merge(tmp_path / "head", cache, out=tmp_path / "model", golden="synthetic")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), str(table)])
    assert done.exit_code == 0, done.output
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert "accuracy" not in told
    assert told["n"] == "6" and 0 < float(told["mean_absolute_error"]) < 6


@pytest.mark.objects
def test_predict_and_evaluate_say_the_same_wherever_the_images_lie(
    bundle: Path, tmp_path: Path, bucket: ObjectPath
) -> None:
    """A folder, its prefix, shards and Parquet files, there and here, one object and one member."""
    written = write_photos(tmp_path / "photos")
    write_shards(tmp_path / "shards", written)
    write_parquet(tmp_path / "parquet", written)
    for name in ("photos", "shards", "parquet"):
        upload(tmp_path / name, bucket / name)
    wanted = [one.probability for one in predict(bundle, tmp_path / "photos")]
    for home in (str(tmp_path), str(bucket)):
        one = [f"{home}/photos/test/cat/00.jpg", f"{home}/shards/test-000000.tar/000000.jpg"]
        several = predict(bundle, [*(f"{home}/{name}" for name in ("photos", "shards", "parquet")), *one])
        assert [prediction.probability for prediction in several] == [*wanted * 3, wanted[0], wanted[0]]
    accuracy = evaluate(bundle, tmp_path / "photos", split="val").accuracy
    assert evaluate(bundle, f"{bucket}/shards", split="val").accuracy == accuracy
    [gone] = predict(bundle, f"{bucket}/photos/gone.jpg")
    assert gone.reason == "cannot be read: there is no such object"


@pytest.mark.objects
def test_the_command_takes_urls_and_imports_no_torch(bundle: Path, tmp_path: Path, bucket: ObjectPath) -> None:
    """A URL stays what it is on the command line, and among the names on standard input."""
    write_photos(tmp_path / "photos")
    upload(tmp_path / "photos", bucket)
    code = (
        "import sys\nfrom featcache.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'timm'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "predict", str(bundle), f"{bucket}/val", "-", "--json"]
    names = f"{bucket}/test/cat/00.jpg\n".encode()
    done = subprocess.run(command, input=names, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert [one["path"].rpartition("/")[2] for one in json.loads(done.stdout)] == ["00.jpg", "01.jpg"] * 2 + ["00.jpg"]
    assert done.stderr.decode().splitlines()[-1] == "[]"
