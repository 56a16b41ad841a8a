"""Examples in docstrings run, and every public name stands in an example that runs.

An example runs in a directory of its own that holds what the README's commands make: ``photos/`` (two classes, ``cat``
and ``dog``, twelve JPEGs each), ``cache``, ``head``, ``model`` (not compressed) and ``bundle`` (ONNX). It may read
and change them. A module is found by its ``>>>``; nothing has to be listed.
"""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest
from conftest import write_photo

import featcache

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "featcache"


def _module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


DOCTESTED = tuple(
    _module_name(file)
    for file in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^\s*>>> ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with photos, and the cache, head, model and bundle made of them."""
    place = tmp_path_factory.mktemp("artefacts")
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(12):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue)
    featcache.build_cache(place / "photos", place / "cache")
    with featcache.open_cache(place / "cache") as cache:
        head = featcache.train_head(cache).head
        featcache.save_head(head, place / "head")
        featcache.merge(head, cache, out=place / "model")
    featcache.export(place / "model", out=place / "bundle", cache=place / "cache")
    return place


@pytest.fixture
def workplace(artefacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of an example: a copy of the artefacts, with the images' times kept."""
    place = tmp_path / "workplace"
    shutil.copytree(artefacts, place)
    monkeypatch.chdir(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCTESTED)
def test_docstring_examples_run(name: str, workplace: Path) -> None:
    """Each ``>>>`` of the module gives what stands below it."""
    outcome = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert outcome.attempted > 0
    assert outcome.failed == 0, "the differences are in the captured output"
