"""The server over its own sockets: what is classified, what is refused, and how it starts and stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from serving import Running, running

from featcache.errors import CorruptError, InputError, MissingError
from featcache.heads.base import softmax
from featcache.images.load import load_image
from featcache.runtime import open_bundle, predict
from featcache.serve import ServeSettings, serve


def test_classify_says_what_predict_says(server: Running, pets: Path, photos: Path) -> None:
    """Several files in one request, in their order: label and probability of each are those of `predict`."""
    paths = sorted(photos.rglob("*.jpg"))[::3]
    expected = predict(pets, paths)
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


def pixels_of(pets: Path, *paths: Path) -> np.ndarray:
    preprocessing = open_bundle(pets).preprocessing
    return np.stack([load_image(path.read_bytes(), preprocessing, decoder="pillow") for path in paths])


def test_v2_health_and_metadata(server: Running, pets: Path) -> None:
    assert json.loads(server.get("/v2")[1])["extensions"] == ["binary_tensor_data"]
    assert server.get("/v2/health/live") == (200, b'{"live":true}')
    assert server.get("/v2/health/ready") == (200, b'{"ready":true}')
    size = open_bundle(pets).preprocessing
    expected = {
        "name": "pets", "versions": ["1"], "platform": "featcache_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, size.height, size.width, 3]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in ("logits", "probabilities")],
    }  # fmt: skip
    for path in ("/v2/models/pets", "/v2/models/pets/versions/1"):
        assert json.loads(server.get(path)[1]) == expected
        assert json.loads(server.get(path + "/ready")[1]) == {"name": "pets", "ready": True}


def test_v2_infer_answers_with_the_bundles_own_logits_in_json_and_binary(
    server: Running, pets: Path, photos: Path
) -> None:
    images = pixels_of(pets, photos / "cat" / "00.jpg", photos / "dog" / "00.jpg")
    with open_bundle(pets).open(threads=1) as runner:
        expected = runner.run(images)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    status, answer = server.post(
        "/v2/models/pets/infer", json.dumps({"id": "a", "inputs": [{**tensor, "data": images.tolist()}]})
    )
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("pets", "1", "a")
    by_name = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
    np.testing.assert_allclose(by_name["logits"], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(by_name["probabilities"], softmax(expected), atol=1e-4)

    stated = {**tensor, "parameters": {"binary_data_size": images.nbytes}}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": [stated], "outputs": outputs}).encode()
    status, data, headers = server.request(
        "POST", "/v2/models/pets/versions/1/infer", text + images.tobytes(),
        {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"},
    )  # fmt: skip
    assert status == 200
    length = int(headers["inference-header-content-length"])
    assert json.loads(data[:length])["outputs"][0]["shape"] == [2, 2]
    np.testing.assert_allclose(np.frombuffer(data[length:], dtype="<f4").reshape(2, 2), expected, rtol=1e-4, atol=1e-3)


def test_several_models_and_versions_the_highest_answers(pets: Path, zoo: Path, photos: Path) -> None:
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([f"animals/9={pets}", f"animals/10={zoo}", pets]) as server:
        listed = json.loads(server.get("/models")[1])
        assert [(one["name"], one["version"]) for one in listed] == [("animals", "9"), ("animals", "10"), ("pets", "1")]
        assert server.post("/models/animals/classify", data)[1][0]["label"] in ("ape", "bat", "cow")
        assert server.post("/models/animals/versions/9/classify", data)[1][0]["label"] in ("cat", "dog")
        status, answer = server.post("/models/animals/versions/11/classify", data)
        assert (status, answer) == (404, {"error": "the version of 'animals' must be one of '9', '10', got '11'"})
        status, answer = server.post("/models/cars/classify", data)
        assert (status, answer) == (404, {"error": "a model's name must be one of 'animals', 'pets', got 'cars'"})


def test_metrics_count_requests_errors_images_and_batches(server: Running, photos: Path) -> None:
    lines = {
        "requests": 'featcache_requests_total{endpoint="/models/{name}/classify",status="200"}',
        "errors": 'featcache_errors_total{endpoint="/models/{name}/classify",status="415"}',
        "images": 'featcache_images_total{model="pets",outcome="computed",version="1"}',
        "failed": 'featcache_images_total{model="pets",outcome="failed",version="1"}',
        "batched": 'featcache_batch_images_sum{model="pets",version="1"}',
        "seconds": 'featcache_request_seconds_count{endpoint="/models/{name}/classify"}',
    }
    before = {name: server.metric(line) for name, line in lines.items()}
    files = [(path.name, path.read_bytes()) for path in sorted(photos.rglob("*.jpg"))[:3]]
    server.upload("/models/pets/classify", files)
    server.post("/models/pets/classify", b"no image")
    counted = {name: server.metric(line) - before[name] for name, line in lines.items()}
    assert counted == {"requests": 1, "errors": 1, "images": 3, "failed": 1, "batched": 3, "seconds": 2}
    assert server.metric("featcache_waiting_images") == 0


def test_a_damaged_bundle_is_not_served(pets: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pets, tmp_path / "copy")
    (copy / "labels.txt").write_text("cat\nwolf\n")
    with pytest.raises(CorruptError, match=r"'labels\.txt' is not the file that was exported"), running([copy]):
        pass
    with pytest.raises(MissingError, match="must be a bundle or a folder of some"), running([f"x={pets}-model"]):
        pass


def test_an_address_that_is_taken_is_one_line(server: Running, pets: Path) -> None:
    with pytest.raises(InputError, match=f"127.0.0.1:{server.port} cannot be had"):
        serve([pets], port=server.port)


def test_bounds_must_be_positive() -> None:
    for name in ("threads", "max_batch", "max_queue", "max_body_mb", "body_seconds", "reload_seconds"):
        with pytest.raises(InputError, match=name):
            ServeSettings(**{name: 0})
    with pytest.raises(InputError, match="max_delay_ms"):
        ServeSettings(max_delay_ms=-1)


def test_another_address_needs_a_token_and_a_request_without_it_gets_nothing(
    pets: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([pets], host="0.0.0.0") as server:
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        (token,) = [line["token"] for line in lines if line["event"] == "token made"]
        assert server.get("/v2/health/ready")[0] == 200
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": token}):
            status, answer = server.post("/models/pets/classify", data, headers)
            assert status == 401
            assert "Authorization: Bearer TOKEN" in answer["error"]
        assert server.get("/metrics")[0] == 401
        assert server.post("/models/pets/classify", data, {"Authorization": f"Bearer {token}"})[0] == 200


def test_pages_of_other_sites_and_rebound_names_get_nothing(server: Running, photos: Path) -> None:
    data = (photos / "cat" / "00.jpg").read_bytes()
    own = f"127.0.0.1:{server.port}"
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{own}"}, 200),
        ({"Host": f"localhost:{server.port}"}, 200),
    ):
        assert server.post("/models/pets/classify", data, headers)[0] == status, headers
