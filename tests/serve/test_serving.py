"""The server over its own sockets: what is classified, what is refused, and how it starts and stops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from export_models import saved_model, small_model
from serving import Running, running

from featcache.bundle.exporting import export
from featcache.runtime import predict


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    model = saved_model(place / "model", model=small_model(gain=200.0))
    export(model, out=place / "pets", formats=("onnx",))
    return place / "pets"


@pytest.fixture(scope="module")
def server(bundle: Path):
    with running([bundle]) as started:
        yield started


def test_classify_says_what_predict_says(server: Running, bundle: Path, photos: Path) -> None:
    """Several files in one request, in their order: label and probability of each are those of `predict`."""
    paths = sorted(photos.rglob("*.jpg"))[::3]
    expected = predict(bundle, paths)
    status, entries = server.upload("/models/pets/classify", [(path.name, path.read_bytes()) for path in paths])
    assert status == 200
    assert [entry["file"] for entry in entries] == [path.name for path in paths]
    assert [entry["label"] for entry in entries] == [one.label for one in expected]
    np.testing.assert_allclose(
        [entry["probability"] for entry in entries], [one.probability for one in expected], atol=1e-5
    )
    assert all(entry["cached"] is False and entry["unknown"] is False for entry in entries)
    assert [[top["label"] for top in entry["top"]] for entry in entries] == [
        [label for label, _ in one.top] for one in expected
    ]


def test_an_image_as_the_body_is_classified_whatever_its_content_type(server: Running, photos: Path) -> None:
    """As `curl --data-binary` sends it."""
    data = (photos / "cat" / "00.jpg").read_bytes()
    for kind in ("image/jpeg", "application/x-www-form-urlencoded", "application/json"):
        status, entries = server.post("/models/pets/classify?top=1", data, {"Content-Type": kind})
        assert (status, len(entries), len(entries[0]["top"]), entries[0]["file"]) == (200, 1, 1, None)


def test_a_bad_file_among_several_is_an_entry_with_its_reason(server: Running, photos: Path) -> None:
    good = (photos / "dog" / "00.jpg").read_bytes()
    status, entries = server.upload(
        "/models/pets/classify", [("a.jpg", good), ("b.jpg", b"text"), ("c.jpg", good[:99])]
    )
    assert status == 200
    assert [sorted(entry) for entry in entries[1:]] == [["error", "file"]] * 2
    assert entries[0]["label"] in ("cat", "dog")
    assert entries[1]["error"].startswith("not an image file")
    assert "truncated JPEG" in entries[2]["error"]


def test_names_of_files_are_text(server: Running, tmp_path: Path) -> None:
    """A path, markup and a mark of direction come back as they were sent, inside JSON."""
    write_photo(tmp_path / "a.png", seed=1)
    names = ["../../etc/passwd", "<script>.png", "\u202egnp.png", "__proto__"]
    _, entries = server.upload("/models/pets/classify", [(name, (tmp_path / "a.png").read_bytes()) for name in names])
    assert [entry["file"] for entry in entries] == names


def test_openapi_and_docs_describe_every_endpoint_and_name_no_other_host(server: Running) -> None:
    document = json.loads(server.get("/openapi.json")[1])
    assert {"/models/{name}/classify", "/v2/models/{name}/infer", "/v2/health/ready", "/metrics"} <= set(
        document["paths"]
    )
    assert "422" not in document["paths"]["/models/{name}/classify"]["post"]["responses"]
    for path in ("/docs", "/docs/docs.js", "/docs/docs.css"):
        status, page, headers = server.get_with_headers(path)
        assert status == 200
        assert b"//" not in page.replace(b"// Renders", b"").replace(b"{location.origin}", b"") or b"http" not in page
        assert headers["content-security-policy"].startswith("default-src 'self'")
