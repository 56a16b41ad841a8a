"""Fixtures shared by all tests: the real photos and weights beside the checkout, and small generated image folders."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from object_storage import bucket, s3_before, s3_endpoint, s3_proxy  # noqa: F401 - fixtures of every test
from PIL import Image

import featcache  # noqa: F401 - before ONNX Runtime and OpenVINO: their telemetry is off when tests import them

os.environ.setdefault("OMP_NUM_THREADS", "2")
pytest.register_assert_rewrite("featcache.testing")
# Examples that failed are kept nowhere: the checkout may be read-only, or another user's.
hypothesis.settings.register_profile("featcache", database=None)
hypothesis.settings.load_profile("featcache")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


# Rooms whose tests need no tools of device formats: `scripts/test` still installs those while these run.
_WITHOUT_TOOLS = ("backbone", "cache", "datasets", "extract", "heads", "images", "store", "system", "train")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes long for what it adds, unless it is asked for; files that need no tools come first."""
    if not os.environ.get("FEATCACHE_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long for what it adds: set FEATCACHE_LONG=1 to run it"))
    # then those of no room, some of which take long: what is last should be short, or one worker waits for the other
    items.sort(key=lambda item: (_needs_tools(item), item.path.parent != ROOT / "tests"))


def _needs_tools(item: pytest.Item) -> bool:
    return item.path.relative_to(ROOT / "tests").parts[0] not in _WITHOUT_TOOLS


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Wait for the tools that `scripts/test` installs beside the tests; it tells by a file that they are there."""
    installed = os.environ.get("FEATCACHE_TEST_TOOLS")
    if installed and _needs_tools(item):
        end = time.monotonic() + 600
        while not Path(installed).exists() and time.monotonic() < end:
            time.sleep(0.2)


@pytest.fixture(autouse=True, scope="session")
def _private_cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled networks of the tests out of the user's cache directory."""
    before = os.environ.get("FEATCACHE_HOME")
    os.environ["FEATCACHE_HOME"] = before or str(Path(tempfile.gettempdir()) / f"featcache-tests-home-{os.getuid()}")
    yield
    if before is None:
        del os.environ["FEATCACHE_HOME"]


@pytest.fixture(scope="session")
def shared_weights() -> Callable[[str], Path]:
    """Return a function from a weights name to its file; skips where the real weights are absent."""

    def find(name: str) -> Path:
        path = SHARED / "weights" / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"the real weights {name!r} are not beside this checkout")
        return path

    return find


def _first_of_each_folder(count: int) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """Return a filter that leaves out what comes after the first `count` files of a folder."""
    seen: Counter[str] = Counter()

    def keep(member: tarfile.TarInfo, place: str) -> tarfile.TarInfo | None:
        if member.isfile():
            seen[member.name.rpartition("/")[0]] += 1
            if seen[member.name.rpartition("/")[0]] > count:
                return None
        return tarfile.data_filter(member, place)

    return keep


def _unpacked(archive: str, name: str, tmp_path_factory: pytest.TempPathFactory, *, first: int | None = None) -> Path:
    """Return the folder `name` of an archive, unpacked once for all workers; `first`: so many files of each folder."""
    source = SHARED / "datasets" / archive
    if not source.exists():
        pytest.skip(f"the real photos {archive!r} are not beside this checkout")
    home = Path(os.environ.get("FEATCACHE_TEST_DATA", tmp_path_factory.getbasetemp().parent / "featcache-data"))
    place = home / (name if first is None else f"{name}-{first}")
    if not place.exists():
        home.mkdir(parents=True, exist_ok=True)
        unpacking = home / f".{place.name}.{os.getpid()}"
        with tarfile.open(source) as tar:
            tar.extractall(unpacking, filter="data" if first is None else _first_of_each_folder(first))
        try:
            (unpacking / name).rename(place)
        except OSError:
            if not place.exists():  # another worker of this run was first
                raise
    return place


@pytest.fixture(scope="session")
def clothing10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked photo set clothing10: train/ val/ test/ above ten class folders."""
    return _unpacked("clothing10.tar", "clothing10", tmp_path_factory)


@pytest.fixture(scope="session")
def clothing10_cache(
    clothing10: Path, shared_weights: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the cache of clothing10 through a MobileNetV2, made once for all workers of a run; only to be read."""
    from featcache.extract.build import build_cache

    weights = shared_weights("mobilenetv2_100.torch_ptq")
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "featcache-clothing10-cache"
    if not place.exists():
        building = place.with_name(f"{place.name}.{os.getpid()}")
        build_cache(clothing10, building, backbone="mobilenetv2_100", weights=weights)
        try:
            building.rename(place)
        except OSError:
            if not place.exists():  # another worker of this run was first
                raise
    return place


@pytest.fixture(scope="session")
def tinyimagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return ten photos of each split and class of the 200-class set of 64x64 photos: train/ and val/."""
    return _unpacked("tinyimagenet200_40k.tar.gz", "tinyimagenet200_40k", tmp_path_factory, first=10)


def write_photo(path: Path, *, seed: int, size: tuple[int, int] = (48, 40), hue: int = 0) -> None:
    """Write a small structured JPEG (or PNG, by the extension): a blurred colour pattern that differs by seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    coarse[..., hue % 3] = coarse[..., hue % 3] // 4 + 180
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.save(path, quality=92) if path.suffix.lower() in (".jpg", ".jpeg") else image.save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two classes with twelve small JPEGs each; the classes differ in their dominant channel."""
    folder = tmp_path / "photos"
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(12):
            write_photo(folder / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue)
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a small random network that tells cats from dogs; only to be read."""
    from serving import exported

    return exported(tmp_path_factory.mktemp("pets"), "pets", classes=("cat", "dog"))


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace with a cache of 90 unlabelled photos in three colours; only to be copied."""
    from studio_client import coloured_cache

    workspace = tmp_path_factory.mktemp("coloured")
    coloured_cache(workspace, each=30, classes=("red", "green", "blue"))
    return workspace


@pytest.fixture
def workspace(coloured: Path, tmp_path: Path) -> Path:
    """Return a copy of `coloured` to be worked on."""
    (tmp_path / "work").mkdir()
    shutil.copytree(coloured / "caches", tmp_path / "work" / "caches")
    return tmp_path / "work"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the same network with other labels; only to be read."""
    from serving import exported

    return exported(tmp_path_factory.mktemp("zoo"), "zoo", classes=("ape", "bat", "cow"))


@pytest.fixture(scope="session")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``cards.csv``, a tiny encoder, the ``cache`` of the texts, its ``bundle``; only to be read.

    Texts with ``money`` or ``card`` in them are of the class money, all others of time.
    """
    from text_encoders import write_cards

    return write_cards(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="session")
def server(pets: Path) -> Iterator[object]:
    """Return the client of a running server of `pets`."""
    from serving import running

    with running([pets]) as started:
        yield started


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty place the model hub's local cache, in this process and its children; the hub itself is nowhere."""
    from huggingface_hub import constants

    place = tmp_path / "hub"
    for name, value in {"HF_HUB_CACHE": str(place), "ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(place))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return place


@pytest.fixture(scope="session")
def mobilenetv2() -> bytes:
    """Return a weights file of mobilenetv2_100 as the hub has one, but never trained."""
    from safetensors.torch import save

    from featcache.backbone.networks import create_random

    return save(create_random("mobilenetv2_100", {}, "random:0").state_dict())
