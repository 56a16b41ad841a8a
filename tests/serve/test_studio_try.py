"""A bundle tried in the page: the server's answer beside that of its own web export, which is handed images alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from chromium import Page, chromium
from serving import saved_model, small_model
from studio_client import Client, draw_coloured, open_studio

from featcache.bundle.exporting import export
from featcache.formats.registry import find_target
from featcache.formats.web.browser import find_chromium
from featcache.serve.studio.commands import device_formats

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="a Chromium must be on the PATH, none is")
# what a stranger's export could try: it answers with the names of what it could reach
HOSTILE = """
export class Classifier {
  static async load() {
    const reached = [];
    const tries = {
      page: () => parent.document.title, storage: () => localStorage.length, cookies: () => document.cookie,
      api: () => fetch(new URL("/api/datasets", import.meta.url)), elsewhere: () => fetch("https://example.org/"),
      code: () => new Function("return 1")(), top: () => (top.location = "about:blank"),
    };
    for (const [name, work] of Object.entries(tries)) {
      try { await work(); reached.push(name); } catch {}
    }
    return { classify: async () => ({ label: `reached: ${reached}`, unknown: false, entries: [], milliseconds: 1 }) };
  }
}
"""


@pytest.fixture(autouse=True)
def _installed_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for tools where the user installed them, not in the tests' private folder."""
    if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
        monkeypatch.delenv("FEATCACHE_HOME")
    device_formats.cache_clear()


def with_web_export(bundle: Path, place: Path, script: str) -> Path:
    """Return a copy of `bundle` that states a web export, whose classifier is `script`."""
    shutil.copytree(bundle, place)
    (place / "web").mkdir()
    (place / "web" / "classifier.js").write_text(script, encoding="utf-8")
    file = place / "manifest.json"
    manifest = json.loads(file.read_bytes())
    data = script.encode()
    manifest["files"]["web/classifier.js"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["formats"]["web"] = {"files": ["web/classifier.js"]}
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return place


def open_ship(page: Page, client: Client) -> None:
    page.open(f"http://127.0.0.1:{client.port}/#ship", width=1280, height=900)
    page.wait("!!document.querySelector('.ship select option')")


def drop_photo(page: Page, photo: Path) -> None:
    """Drop the bytes of an image file onto the page."""
    data = f"new Uint8Array({list(photo.read_bytes())})"
    page.run(
        f"(() => {{ const carried = new DataTransfer(); carried.items.add(new File([{data}], 'x.jpg'));"
        " document.querySelector('.ship .drop').dispatchEvent("
        "new DragEvent('drop', {dataTransfer: carried, cancelable: true})); })()"
    )


ANSWERS = "[...document.querySelectorAll('.answer .figure')].map((one) => one.textContent)"


@pytest.mark.slow
@needs_chromium
def test_a_strangers_web_export_reaches_nothing(pets: Path, photos: Path, tmp_path: Path) -> None:
    """Not the page, its storage and cookies, the API, the network, nor code out of text: it answers, no more."""
    with_web_export(pets, tmp_path / "work" / "bundles" / "pets", HOSTILE)
    with open_studio(tmp_path / "work") as client, chromium() as page:
        open_ship(page, client)
        page.wait("!!document.querySelector('iframe')")
        drop_photo(page, photos / "cat" / "00.jpg")
        page.wait(f"{ANSWERS}.length === 2")
        server, own = page.run(ANSWERS)
        assert server in ("cat", "dog")
        assert own == "reached: "
        assert page.run("document.title").startswith("Ship")


def test_files_of_a_web_export_have_addresses_that_nobody_can_guess(pets: Path, tmp_path: Path) -> None:
    """Only the frame and what the manifest states are there, each with a policy of a frame of nobody's origin."""
    place = with_web_export(pets, tmp_path / "work" / "bundles" / "pets", HOSTILE)
    (place / "web" / "other.js").write_text("1", encoding="utf-8")
    shutil.copytree(pets, tmp_path / "work" / "bundles" / "plain")
    with open_studio(tmp_path / "work", token="s3cret") as client:
        allowed = {"Authorization": "Bearer s3cret"}
        assert client.request("GET", "/api/web?bundle=bundles/pets")[0] == 401
        status, data, _ = client.request("GET", "/api/web?bundle=bundles/plain", headers=allowed)
        assert (status, json.loads(data)) == (200, {"input": "image", "shown": "picture", "address": None})
        address = json.loads(client.request("GET", "/api/web?bundle=bundles/pets", headers=allowed)[1])["address"]
        root = address.removesuffix("frame.html")
        assert len(root.split("/")[2]) >= 32
        for name in ("frame.html", "frame.js", "bundle/classifier.js"):
            status, _, headers = client.get_with_headers(root + name)
            assert status == 200, name
            assert headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
            assert headers["x-content-type-options"] == "nosniff"
        for path in ("bundle/other.js", "bundle/../manifest.json", "bundle/%2e%2e/manifest.json", "", "manifest.json"):
            assert client.get(root + path)[0] == 404, path
        assert client.get("/web/" + "A" * 32 + "/frame.html")[0] == 404
        assert client.request("POST", root + "frame.html", b"")[0] == 404
        data = (place / "web" / "classifier.js").read_bytes()
        (place / "web" / "classifier.js").write_bytes(data + b"\n")
        (place / "manifest.json").touch()  # as of another export
        assert client.request("GET", "/api/web?bundle=bundles/pets", headers=allowed)[0] >= 400


@pytest.mark.slow
@pytest.mark.target
@needs_chromium
@pytest.mark.skipif(find_target("web").available() is not None, reason="onnxruntime-web is not installed")
def test_the_web_export_and_the_server_say_the_same_of_a_photo(photos: Path, tmp_path: Path) -> None:
    """Of a dropped photo and of the camera as well; the answers' probabilities are equal to a tenth of a percent."""
    model = saved_model(tmp_path / "model", model=small_model(gain=200.0, classes=("cat", "dog")))
    (tmp_path / "work" / "bundles").mkdir(parents=True)
    export(model, out=tmp_path / "work" / "bundles" / "pets", formats=("onnx", "web"))
    with open_studio(tmp_path / "work") as client, chromium() as page:
        open_ship(page, client)
        page.wait("!!document.querySelector('iframe')")
        drop_photo(page, photos / "cat" / "00.jpg")
        page.wait(f"{ANSWERS}.length === 2")
        sides = "[...document.querySelectorAll('.answer')].map((one) => [...one.querySelectorAll('.bar')]"
        server, own = page.run(f"{sides}.map((bar) => [bar.textContent]))")
        assert server == own and len(own) == 2
        page.run(
            "[...document.querySelectorAll('.ship button')].find((one) => one.textContent.includes('camera')).click()"
        )
        page.wait(
            "!document.querySelector('.ship .hold').hidden && document.querySelector('.ship video').videoWidth > 0"
        )
        page.run("document.querySelectorAll('.answer').forEach((one) => one.replaceChildren())")
        page.hold(".ship .hold")
        page.wait(f"{ANSWERS}.length === 2")
        page.release(".ship .hold")
        assert page.problems == []


@pytest.mark.slow
@needs_chromium
def test_the_camera_records_into_a_class_while_its_button_is_held(tmp_path: Path) -> None:
    """Three pictures or more by mouse, more by the keyboard; let go, none comes; then they are built in."""
    taken = "+(document.querySelector('.bring [aria-live]').textContent.match(/\\d+/) ?? [0])[0]"
    with open_studio(tmp_path / "work") as client, chromium() as page:
        page.open(f"http://127.0.0.1:{client.port}/#bring", width=1280, height=900)
        page.wait("!!document.querySelector('.bring .hold')")
        page.run("document.querySelector('.bring input[maxlength=\"100\"]').value = 'chair'")
        page.run(
            "[...document.querySelectorAll('.bring button')].find((one) => one.textContent.includes('camera')).click()"
        )
        page.wait(
            "!document.querySelector('.bring .hold').hidden && document.querySelector('.bring video').videoWidth > 0"
        )
        page.hold(".bring .hold")
        page.wait(f"{taken} >= 3")
        page.release(".bring .hold")
        page.run("document.querySelector('.bring .hold').focus()")
        before = page.run(taken)
        page._send("Input.dispatchKeyEvent", type="keyDown", key=" ", windowsVirtualKeyCode=32)
        page.wait(f"{taken} > {before + 1}")
        page._send("Input.dispatchKeyEvent", type="keyUp", key=" ", windowsVirtualKeyCode=32)
        page.run("[...document.querySelectorAll('.bring button')].find((one) => one.textContent === 'Done').click()")
        page.wait("document.querySelectorAll('.job').length === 1")
        assert [one["parameters"]["name"] for one in client.json("/api/jobs")] == ["photos"]
        made = list((tmp_path / "work" / "images" / "photos" / "chair").glob("camera-*.jpg"))
        assert len(made) >= 5
        assert page.problems == []
        client.send(f"/api/jobs/{client.json('/api/jobs')[0]['id']}/cancel")


@pytest.mark.slow
@needs_chromium
def test_a_job_is_stopped_in_the_page(tmp_path: Path) -> None:
    photos = draw_coloured(tmp_path / "photos", each=1000)  # takes long enough to be stopped
    with open_studio(tmp_path / "work") as client, chromium() as page:
        for name in ("one", "two"):
            client.send("/api/jobs", kind="build", name=name, images=str(photos))
        page.open(f"http://127.0.0.1:{client.port}/#bring")
        for name in ("two", "one"):
            page.wait(f"!!document.querySelector('.job button[aria-label$=\": {name}\"]')")
            page.run(f"document.querySelector('.job button[aria-label$=\": {name}\"]').click()")
            page.wait(
                f"[...document.querySelectorAll('.job.cancelled strong')].some((one) => one.textContent === '{name}')"
            )


def test_reports_are_read_and_can_do_nothing(pets: Path, tmp_path: Path) -> None:
    """That of a run, and that of a model that compress found; scripts and requests are forbidden."""
    workspace = tmp_path / "work"
    shutil.copytree(pets, workspace / "demo" / "run" / "bundle")
    saved_model(workspace / "models" / "small", model=small_model(classes=("cat", "dog")))
    for name in ("demo/run", "models/small/compression", "thumbnails"):
        (workspace / name).mkdir(exist_ok=True)
        report = "<!doctype html><title>A report</title><script>alert(1)</script>"
        (workspace / name / "report.html").write_text(report)
    with open_studio(workspace) as client:
        names = [one["name"] for one in client.json("/api/reports")]
        assert names == ["demo/run", "models/small/compression"]
        for name in names:
            status, data, headers = client.get_with_headers(f"/api/report?name={name}")
            assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
            assert b"A report" in data
            policy = headers["content-security-policy"]
            assert policy.startswith("sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'")
            assert "script" not in policy
        for name in ("thumbnails", "..", "demo", "demo/run/../run", "/etc"):
            assert client.get(f"/api/report?name={name}")[0] == 404


def test_formats_say_what_they_lack(tmp_path: Path) -> None:
    with open_studio(tmp_path / "work") as client:
        found = {one["name"]: one["missing"] for one in client.json("/api/formats")}
    assert found["onnx"] is None and {"web", "openvino", "tflite"} <= found.keys()
    for name, missing in found.items():
        assert (missing is None) == (find_target(name).available() is None), name
