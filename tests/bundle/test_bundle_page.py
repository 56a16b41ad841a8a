"""The page about the bundle's format names everything that a bundle holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_photo
from export_models import saved_model, small_model

from featcache.bundle.exporting import export
from featcache.heads.unknown import UnknownRule
from featcache.model.merged import MergedModel

PAGE = (Path(__file__).resolve().parents[2] / "featcache" / "bundle" / "README.md").read_text(encoding="utf-8")
# objects whose keys are names of things, not of the format; of the first the values are looked into
BY_NAME = ("formats", "files", "tensors", "inputs", "outputs")
OPEN = ("recipe", "steps", "versions", "per_class", "not_installed")


def keys_of(value: Any, *, by_name: bool = False) -> Iterator[str]:
    """Yield every key of the format in `value`."""
    if isinstance(value, list):
        for entry in value:
            yield from keys_of(entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            if not by_name:
                yield key
            if key not in OPEN or by_name:
                yield from keys_of(entry, by_name=key in BY_NAME and not by_name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle of a model with a rule for unknown images, measured on labelled photos, half of them mistaken."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    place = tmp_path_factory.mktemp("page")
    plain = small_model()
    rule = UnknownRule("max_probability", 0.1, 0.95, 20, 0.9, ("bird",))
    model = MergedModel(
        plain.backbone, dataclasses.replace(plain.fitted_head, unknown=rule), recipe=plain.recipe, lineage=plain.lineage
    )
    for number, label in enumerate(("cat", "dog", "cat", "dog")):
        write_photo(place / "photos" / "train" / label / f"{number}.jpg", seed=number)
        write_photo(place / "photos" / "test" / label / f"{number}.jpg", seed=10 + number)
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (place / "key.pem").write_bytes(key)
    export(
        saved_model(place / "model", model=model), out=place / "bundle", images=place / "photos",
        formats=["openvino", "tensorrt"], sign=place / "key.pem",
    )  # fmt: skip
    return place / "bundle"


@pytest.mark.parametrize(
    "name", ["preprocess.json", "manifest.json", "report.json", "signature.json", "golden/golden.json"]
)
def test_page_names_every_key_of_a_document(bundle: Path, name: str) -> None:
    """A device developer reads the documents without asking us."""
    keys = set(keys_of(json.loads((bundle / name).read_text(encoding="utf-8"))))
    assert len(keys) > 3
    assert sorted(key for key in keys if f"`{key}`" not in PAGE) == []


def test_page_names_every_file_and_folder(bundle: Path) -> None:
    """Folders of formats stand there as one."""
    names = {path.name + ("/" if path.is_dir() else "") for path in bundle.iterdir()} - {"openvino/", "tensorrt/"}
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []


def test_page_names_what_single_formats_say_of_their_tensors() -> None:
    """Keys that the formats of this test do not have."""
    from featcache.formats import target_names

    assert {"coreml", "mslite", "ncnn"} <= set(target_names())
    for key in ("numbers", "reader", "least_system", "range", "meaning", "layout"):
        assert f"`{key}`" in PAGE
