"""The command line: the main job on a small folder, JSON keys, one-line errors, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import featcache, refusal, result
from conftest import write_photo

from featcache.datasets.splits import SPLITS

BACKBONE = ["--backbone", "test_efficientnet", "--weights", "random:0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos (with splits), a cache and a head, made by the command line."""
    place = tmp_path_factory.mktemp("made")
    for number, split in enumerate(SPLITS):
        for hue, name in enumerate(["cat", "dog"]):
            for i in range(10):
                seed = 1000 * number + 100 * hue + i
                write_photo(place / "photos" / split / name / f"{i:02}.jpg", seed=seed, hue=hue)
    build = result("build", place / "photos", "--cache", place / "cache", *BACKBONE)
    assert set(build) >= {
        "images", "ignored", "extracted", "reused", "failed", "rows", "num_features", "fingerprint", "startup_seconds",
        "extract_seconds", "wall_seconds", "images_per_second",
    }  # fmt: skip
    assert (build["extracted"], build["failed"], build["random_weights"]) == (60, 0, True)
    train = result("train", place / "cache", "--out", place / "head")
    assert set(train) >= {
        "kind", "l1", "l2", "objective", "gap", "nonzero_fraction", "features_used", "n_train", "n_classes",
        "train_accuracy", "val_accuracy", "test_accuracy", "wall_seconds",
    }  # fmt: skip
    assert train["test_accuracy"] == 1.0  # the classes differ in their dominant colour: even random features tell
    return place


def test_main_job_from_photos_to_verified_bundle(made: Path, tmp_path: Path) -> None:
    cache, photos = made / "cache", made / "photos"
    merged = result("merge", made / "head", cache, "--out", tmp_path / "model")
    assert merged["max_abs_diff"] <= 1e-4
    assert merged["parameters"] > 0
    quantized = result("quantize", tmp_path / "model", "--cache", cache, "--out", tmp_path / "int8")
    assert set(quantized) >= {
        "parameters", "macs", "sparsity", "bytes_before", "bytes_after", "split", "n", "accuracy_float",
        "accuracy_before_refit", "accuracy_after_refit", "latency_ms_before", "latency_ms_after",
    }  # fmt: skip
    exported = result("export", tmp_path / "int8", "--out", tmp_path / "bundle", "--cache", cache)
    entry = exported["formats"]["onnx"]
    assert set(entry) >= {
        "files", "bytes", "executed", "reason", "reference", "n_compared", "max_abs_diff", "top1_agreement", "accuracy",
        "latency_ms",
    }  # fmt: skip
    assert entry["executed"] is True
    assert entry["n_compared"] == 20
    assert entry["top1_agreement"] is None  # fewer than 300 images were compared
    assert featcache("verify", tmp_path / "bundle", "--json").returncode == 0
    evaluated = result("evaluate", tmp_path / "bundle", photos)
    assert (evaluated["n"], evaluated["split"]) == (20, "test")
    assert evaluated["accuracy"] == entry["accuracy"]
    predictions = json.loads(featcache("predict", tmp_path / "bundle", photos / "test" / "dog", "--json").stdout)
    assert len(predictions) == 10
    assert {"path", "label", "probability", "top"} <= set(predictions[0])


def test_info_and_verify_of_a_cache(made: Path) -> None:
    info = result("info", made / "cache")
    assert set(info) >= {
        "recipe", "datasets", "rows", "samples", "bytes", "num_features", "content_digest", "conflicts", "failures",
    }  # fmt: skip
    assert info["datasets"][0]["splits"] == {"train": 20, "val": 20, "test": 20}
    assert result("verify", made / "cache")["ok"] is True


def test_convert_keeps_the_content(made: Path, tmp_path: Path) -> None:
    converted = result("convert", made / "cache", "--store", "zarr", "--out", tmp_path / "zarr")
    assert converted["content_digest"] == result("info", made / "cache")["content_digest"]
    assert result("build", made / "photos", "--cache", tmp_path / "zarr")["extracted"] == 0


def test_human_output_names_random_weights(made: Path) -> None:
    assert "random" in featcache("info", made / "cache").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "{tmp}/gone", "--cache", "{tmp}/c"], "does not exist"),
        (["build", "{tmp}/empty", "--cache", "{tmp}/c"], "at least one image"),
        (["build", "{made}/photos", "--cache", "{tmp}/c", "--backbone", "mobilenetv9"], "nearest"),
        (["build", "{made}/photos", "--cache", "{made}/cache", "--decoder", "pillow"], "decoder: the cache"),
        (["build", "{made}/photos", "--cache", "{tmp}/empty"], "is not"),
        (["build", "{made}/photos", "--cache", "{tmp}/c", "--mean", "1,2"], "three numbers"),
        (["train", "{made}/photos"], "is not"),
        (["train", "{made}/cache", "--l2", "-1"], "at least 0"),
        (["train", "{made}/cache", "--out", "{made}/head"], "--overwrite"),
        (["merge", "{made}/head", "{made}/photos", "--out", "{tmp}/m"], "is not"),
        (["export", "{made}/head", "--out", "{tmp}/b"], "model.json"),
        (["verify", "{tmp}/empty"], "cache, a head, a model or a bundle"),
        (["info", "{tmp}/gone"], "does not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(made: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    assert message in refusal(*[text.format(tmp=tmp_path, made=made) for text in arguments])


def test_one_class_is_refused(made: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_photo(tmp_path / "photos" / "cat" / f"{i}.jpg", seed=i)
    result("build", tmp_path / "photos", "--cache", tmp_path / "cache", *BACKBONE)
    assert "class" in refusal("train", tmp_path / "cache")


def test_weights_that_do_not_fit_name_their_keys(made: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"other.weight": np.zeros(3, dtype=np.float32)}, tmp_path / "w.safetensors")
    line = refusal(
        "build", made / "photos", "--cache", tmp_path / "c", "--backbone", "test_efficientnet", "--weights",
        tmp_path / "w.safetensors",
    )  # fmt: skip
    assert "conv_stem.weight" in line or "other.weight" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_full_disk_loses_nothing_that_was_committed(made: Path, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(mount)], check=False)
    if done.returncode != 0:
        pytest.skip("this container may not mount a file system")
    try:
        line = refusal("build", made / "photos", "--cache", mount / "cache", *BACKBONE, "--dtype", "float32")
        assert "space" in line
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        featcache("build", made / "photos", "--cache", mount / "cache", *BACKBONE, "--dtype", "float32")
        assert featcache("verify", mount / "cache").returncode == 0
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize(
    "module",
    ["featcache", "featcache.cli", "featcache.store", "featcache.cache", "featcache.heads", "featcache.train",
     "featcache.runtime", "featcache.datasets.scan", "featcache.verification"],
)  # fmt: skip
def test_import_bans(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'timm', 'sklearn', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_training_and_predicting_load_no_torch(made: Path, tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'featcache'\nfrom featcache.cli import app\n"
    code += "app(standalone_mode=False)\nprint([m for m in ('torch', 'timm', 'sklearn') if m in sys.modules])"
    for arguments in (["--help"], ["train", str(made / "cache"), "--out", str(tmp_path / "head")]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("[]"), done.stdout[-500:]
