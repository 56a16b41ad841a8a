"""Code generated into a bundle: the model's own shapes and labels, and for MindSpore Lite a program that is run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from export_models import saved_model, small_model
from PIL import Image

from featcache.bundle.exporting import export
from featcache.bundle.snippet import write_snippets
from featcache.extract.inputs.deployed_images import DeployedImages
from featcache.formats.interface import ModelFacts
from featcache.formats.registry import find_target
from featcache.formats.tools.environments import Environment
from featcache.images.load import load_image
from featcache.recipe import Preprocessing
from featcache.runtime import open_bundle

LABELS = ("cat", 'a "b" \\ $c', "Öl/„x“", "猫\n@WIDTH@")


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")


def facts(*, interpolation: str = "bicubic", crop_mode: str = "center") -> ModelFacts:
    size = Preprocessing(96, 80, 110, interpolation, crop_mode, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return ModelFacts("small", LABELS, DeployedImages(size), {}, quantized=False)


def literals(text: str) -> list[str]:
    return re.findall(r'"(?:[^"\\]|\\.)*"', text)


def test_every_language_gets_the_shapes_and_the_labels() -> None:
    found = write_snippets(facts(), ["onnx", "tflite", "coreml", "mslite"])
    assert sorted(found) == ["snippets/Classifier.kt", "snippets/Classifier.swift", "snippets/classifier.cpp"]
    for text in found.values():
        assert not re.search(r"@[A-Z_]+@", text.replace("@WIDTH@", "", 1)), "a label that looks like a place is a label"
        assert "96" in text
        assert "80" in text
        assert text.isascii(), "whatever the encoding that a compiler expects"
    kotlin = next(line for line in found["snippets/Classifier.kt"].splitlines() if "LABELS = listOf" in line)
    assert [json.loads(entry) for entry in literals(kotlin)] == list(LABELS), "its escapes are JSON's"
    swift = next(line for line in found["snippets/Classifier.swift"].splitlines() if "labels: [String]" in line)
    shown = [re.sub(r"\\u\{(\w+)\}", lambda m: chr(int(m[1], 16)), entry[1:-1]) for entry in literals(swift)]
    assert shown == list(LABELS)
    cpp = next(line for line in found["snippets/classifier.cpp"].splitlines() if "kLabels = " in line)
    octal = [re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), e[1:-1].encode()) for e in literals(cpp)]
    assert [entry.decode() for entry in octal] == list(LABELS)


def test_snippets_are_for_the_formats_in_the_bundle(tmp_path: Path) -> None:
    export(saved_model(tmp_path / "model"), out=tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "snippets").exists()
    assert write_snippets(facts(), ["onnx", "openvino"]) == {}
    assert "kCenterCrop = false" in write_snippets(facts(crop_mode="squash"), ["mslite"])["snippets/classifier.cpp"]


def libraries() -> Path:
    environment = find_target("mslite").environment
    assert isinstance(environment, Environment)
    (found,) = environment.path().glob("lib/python*/site-packages/mindspore_lite/lib")
    return found


def compiled(source: Path, out: Path) -> Path:
    target = find_target("mslite")
    compiler = shutil.which("g++")
    if target.available() is not None or compiler is None:
        pytest.skip(f"mslite: {target.available() or 'no g++ on this machine'}")
    command = [
        compiler, "-std=c++17", "-Wall", "-Wextra", "-O1", f"-isystem{libraries().parent}", str(source), "-o", str(out),
        f"-L{libraries()}", *LINKED, "-Wl,--allow-shlib-undefined",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == "", "no warning"
    return out


# the wheel has no library for C++ programs: the one behind its Python module holds the same classes
LINKED = tuple(
    f"-l:{name}"
    for name in ("libmindspore-extendrt_python.so", "libmindspore_converter.so", "libmindspore_core.so",
                 "libmindspore_glog.so.0")
)  # fmt: skip


@pytest.mark.target
@pytest.mark.slow
@pytest.mark.parametrize(("interpolation", "crop_mode"), [("bicubic", "center"), ("bilinear", "squash")])
def test_the_cpp_program_gives_pythons_logits_from_a_photo(tmp_path: Path, interpolation: str, crop_mode: str) -> None:
    target = find_target("mslite")
    if target.available() is not None:
        pytest.skip(f"mslite: {target.available()}; {target.needs}")
    model = small_model(classes=LABELS)
    recipe = dataclasses.replace(
        model.recipe,
        preprocessing=dataclasses.replace(
            model.preprocessing, interpolation=interpolation, crop_mode=crop_mode, resize=model.preprocessing.width + 9
        ),
    )
    model = type(model)(model.backbone, model.fitted_head, recipe=recipe, lineage=[])
    saved_model(tmp_path / "model", model=model)
    export(tmp_path / "model", out=tmp_path / "bundle", formats=("onnx", "mslite"))
    program = compiled(tmp_path / "bundle" / "snippets" / "classifier.cpp", tmp_path / "classifier")
    write_photo(tmp_path / "photo.png", seed=3, size=(301, 217))
    with Image.open(tmp_path / "photo.png") as photo:
        photo.save(tmp_path / "photo.ppm")
    done = subprocess.run(
        [program, tmp_path / "bundle" / "mslite" / "model.ms", tmp_path / "photo.ppm"],
        capture_output=True,
        check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries())},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    printed = [float(value) for value in re.findall(r"^(\S+)\t", done.stdout.decode(), flags=re.MULTILINE)]
    pixels = load_image((tmp_path / "photo.png").read_bytes(), model.preprocessing, decoder="pillow")
    with open_bundle(tmp_path / "bundle").open("mslite", threads=1) as runner:
        expected = runner.run(pixels[None])[0]
    np.testing.assert_allclose(printed, expected, rtol=1e-4, atol=1e-4)
    assert LABELS[int(expected.argmax())].encode() in done.stdout.splitlines()[-1]
