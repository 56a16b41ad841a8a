"""The page in a bundle's ``web/``, opened in a real browser: what it shows is what Python says of the same files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from export_models import saved_model, small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.bundle.exporting import export
from featcache.errors import DependencyError, VerificationError
from featcache.formats.registry import find_target
from featcache.formats.tools.npm import NpmPackage
from featcache.formats.web.browser import Browser, find_chromium
from featcache.images.load import load_image
from featcache.images.resize import resize_with_pillow
from featcache.model.golden import GOLDEN_COUNT
from featcache.model.reference import logits_of_images
from featcache.recipe import Preprocessing
from featcache.runtime import open_bundle, predict

PAGE = Path(__file__).parent / "web_page"
LABELS = ("cat", "dog, wet", "Öl/„x“ <b>")

needs_web = pytest.mark.target


@pytest.fixture(scope="module", autouse=True)
def _installed_tools() -> Iterator[None]:
    """Look for tools where the user installed them, not in the tests' private folder."""
    with pytest.MonkeyPatch.context() as patch:
        if "featcache-tests-home" in os.environ.get("FEATCACHE_HOME", ""):
            patch.delenv("FEATCACHE_HOME")
        yield


def installed() -> None:
    target = find_target("web")
    reason = target.available() or target.executable()
    if reason is not None:
        pytest.skip(f"web: {reason}; {target.needs}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed()
    place = tmp_path_factory.mktemp("web")
    model = small_model(classes=LABELS, gain=200.0)
    # centred on the golden images, so that they get several classes
    logits = logits_of_images(model, model.input.synthetic(GOLDEN_COUNT))
    head = dataclasses.replace(model.fitted_head, bias=-logits.mean(axis=0))
    saved_model(place / "model", model=model.with_head(head))
    export(place / "model", out=place / "bundle", formats=("onnx", "web"))
    return place / "bundle"


@pytest.fixture(scope="module")
def browser(bundle: Path) -> Iterator[Browser]:
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with Browser({"web": bundle / "web", "test": PAGE}, arguments=camera) as opened:
        yield opened


def golden(bundle: Path) -> list[Path]:
    return sorted((bundle / "golden").glob("*.jpg"))


@needs_web
def test_dropped_golden_images_get_pythons_first_class(bundle: Path, browser: Browser) -> None:
    page, _ = browser.call("test/page.js", "open")
    assert page["state"] == "ready", page
    assert all(label in page["about"] for label in LABELS)
    expected = predict(bundle, golden(bundle), format="onnx")
    assert len({entry.label for entry in expected}) > 1, "one class for everything would prove nothing"
    for path, entry in zip(golden(bundle), expected, strict=True):
        shown, _ = browser.call("test/page.js", "drop", payload=path.read_bytes(), file=path.name)
        assert shown["state"] == "done", shown
        assert shown["label"] == entry.label
        assert shown["entries"][0]["label"] == entry.label
        assert float(shown["entries"][0]["text"].removesuffix(" %")) == pytest.approx(100 * entry.probability, abs=1)


@needs_web
def test_a_file_that_is_no_image_is_said_to_be_none_and_the_page_goes_on(bundle: Path, browser: Browser) -> None:
    browser.call("test/page.js", "open")
    shown, _ = browser.call("test/page.js", "drop", payload=b"no image", file="x.jpg")
    assert (shown["state"], "no image" in shown["status"]) == ("failed", True)
    shown, _ = browser.call("test/page.js", "drop", payload=golden(bundle)[0].read_bytes(), file="x.jpg")
    assert shown["state"] == "done"


@needs_web
def test_the_camera_is_classified(browser: Browser) -> None:
    browser.call("test/page.js", "open")
    shown, _ = browser.call("test/page.js", "film")
    assert (shown["state"], shown["filming"]) == ("done", True), shown
    assert shown["label"] in LABELS


@needs_web
def test_the_page_names_nothing_outside_its_folder(bundle: Path, browser: Browser) -> None:
    texts = {p.name: p.read_text() for p in (bundle / "web").iterdir() if p.suffix in (".html", ".js", ".css")}
    assert not {name for name, text in texts.items() if re.search(r"(https?:)?//[\w.]+\.\w", text.split("//", 1)[-1])
                and "localhost" not in text}  # fmt: skip
    assert "default-src 'none'" in texts["index.html"]
    assert browser.call("test/page.js", "reach", address="http://example.org/")[0] == {"reached": False}


SIZES = st.integers(1, 90)


@needs_web
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    width=SIZES, height=SIZES, side=st.integers(1, 40), more=st.integers(0, 20), seed=st.integers(0, 9),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos", "nearest"]),
    mode=st.sampled_from(["center", "squash"]), stride=st.sampled_from([3, 4]),
)  # fmt: skip
def test_javascript_resizes_as_pillow_does(
    browser: Browser, width: int, height: int, side: int, more: int, seed: int, interpolation: str, mode: str,
    stride: int,
) -> None:  # fmt: skip
    size = Preprocessing(side, side, side + more, interpolation, mode, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, stride), dtype=np.uint8)
    expected = resize_with_pillow(Image.fromarray(np.ascontiguousarray(pixels[..., :3])), size, None)
    _, found = browser.call(
        "test/page.js", "resize", payload=pixels.tobytes(), width=width, height=height, stride=stride,
        preprocessing=size.to_json(),
    )  # fmt: skip
    difference = np.abs(np.frombuffer(found, np.uint8).reshape(side, side, 3).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.max() == 0, "it is meant to be the very same arithmetic"


@needs_web
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_files_become_the_references_pixels_in_the_browser(browser: Browser, tmp_path: Path, orientation: int) -> None:
    write_photo(tmp_path / "photo.png", seed=5, size=(301, 200))
    with Image.open(tmp_path / "photo.png") as image:
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, subsampling=0, exif=exif)
    size = Preprocessing(96, 96, 110, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    expected = load_image(file.getvalue(), size, decoder="pillow")
    said, found = browser.call("test/page.js", "input", payload=file.getvalue(), preprocessing=size.to_json())
    assert (said["width"], said["height"]) == ((301, 200) if orientation in (1, 3) else (200, 301))
    difference = np.abs(np.frombuffer(found, np.uint8).reshape(expected.shape).astype(int) - expected)
    assert difference.max() <= 2


@needs_web
def test_report_says_what_ran_and_what_the_browsers_decoder_changes(bundle: Path) -> None:
    entry = json.loads((bundle / "report.json").read_text())["export"]["formats"]["web"]
    assert entry["executed"] is True
    assert re.match(r"onnxruntime-web \d.* in Chromium \d+", entry["runtime"])
    assert entry["max_abs_diff"] <= 1e-4
    assert entry["latency_ms"]["threads"] == 1
    assert entry["from_files"]["n_compared"] == 16
    assert (entry["from_files"]["disagreements"], entry["from_files"]["undecoded"]) == (0, 0)


@needs_web
def test_a_format_the_browser_cannot_read_is_counted_not_fatal(bundle: Path) -> None:
    opened = open_bundle(bundle)
    tiff = io.BytesIO()
    Image.new("RGB", (50, 50), "red").save(tiff, "TIFF")
    with opened.open("web") as runner:
        logits = runner.run_files([tiff.getvalue, golden(bundle)[0].read_bytes])
    assert logits is not None
    assert np.isnan(logits).any(axis=1).tolist() == [True, False]


@needs_web
def test_two_pages_of_one_model_are_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    export(bundle.parent / "model", out=tmp_path / "again", formats=("web",))
    names = sorted(path.relative_to(bundle) for path in (bundle / "web").rglob("*") if path.is_file())
    assert len(names) == 14
    assert [n for n in names if (bundle / n).read_bytes() != (tmp_path / "again" / n).read_bytes()] == []


@needs_web
def test_a_page_that_fails_says_why_and_a_browser_that_ends_is_noticed(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    (tmp_path / "web").mkdir()
    for path in opened.files("web"):
        place = tmp_path / "web" / path.relative_to(bundle / "web")
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
    (tmp_path / "web" / "model.onnx").write_bytes(b"broken")
    with pytest.raises(VerificationError, match="browser must load"):
        find_target("web").open([tmp_path / "web" / "index.html"], threads=1)
    with Browser({}) as other:
        other._process.kill()
        with pytest.raises(VerificationError, match="must stay open"):
            other.call("test/page.js", "open")


def test_without_a_browser_the_page_is_made_and_not_claimed_to_have_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = find_target("web").environment
    if package is None or package.reason() is not None:
        pytest.skip("web: onnxruntime-web is not installed; featcache targets install web")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("FEATCACHE_CHROMIUM", raising=False)
    assert find_chromium() is None
    report = export(saved_model(tmp_path / "model"), out=tmp_path / "bundle", formats=("web",))
    entry = report.formats["web"].to_json()
    assert (entry["executed"], entry["accuracy"], entry["latency_ms"]) == (False, None, None)
    assert "Chromium" in entry["reason"]
    assert "ONNX Runtime" in entry["computed_by"]


# --- the package from npm -------------------------------------------------------------------------------------------


def fake_npm(folder: Path, body: str) -> None:
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o755)


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    fake_npm(tmp_path / "bin", "open('x-1.0.0.tgz', 'wb').write(b'other')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    package = NpmPackage("x", "1.0.0", "sha512-" + "A" * 86 + "==", ("dist/x.js",), 1)
    with pytest.raises(DependencyError, match="must have the digest"):
        package.install()
    assert list((tmp_path / "home" / "targets").iterdir()) == []
    assert "not installed" in str(package.reason())


def test_npm_that_fails_or_is_missing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    package = NpmPackage("x", "1.0.0", "sha512-AA==", ("dist/x.js",), 1)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(DependencyError, match="not on the PATH"):
        package.install()
    fake_npm(tmp_path / "bin", "import sys; sys.exit('npm error 404')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(DependencyError, match="npm says: npm error 404"):
        package.install()


def test_install_keeps_the_named_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import hashlib
    import tarfile

    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        for name in ("package/dist/x.js", "package/dist/y.js", "../evil"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"ok"))
    data = (tmp_path / "made.tgz").read_bytes()
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    monkeypatch.setenv("FEATCACHE_HOME", str(tmp_path / "home"))
    fake_npm(tmp_path / "bin", f"import shutil; shutil.copy({str(tmp_path / 'made.tgz')!r}, 'x-1.0.0.tgz')")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    package = NpmPackage("x", "1.0.0", f"sha512-{digest}", ("dist/x.js",), 1)
    package.install()
    assert package.reason() is None
    assert sorted(path.name for path in package.path().iterdir()) == ["installed.json", "x.js"]
    assert not list(tmp_path.rglob("evil"))
    newer = NpmPackage("x", "1.0.1", f"sha512-{digest}", ("dist/x.js",), 1)
    assert "another version" in str(newer.reason())


def test_importing_the_browser_loads_no_torch() -> None:
    code = "import sys; import featcache.formats.web.target; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
