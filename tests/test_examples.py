"""Examples in docstrings run, and every public name stands in an example that runs.

An example runs in a directory of its own that holds what the README's commands make: ``photos/`` (two classes, ``cat``
and ``dog``, twelve JPEGs each), ``cache``, ``head``, ``model`` (not compressed) and ``bundle`` (ONNX). It may read
and change them. A module is found by its ``>>>``; nothing has to be listed.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_photo

import featcache

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "featcache"
SCRIPTS = ROOT / "scripts" / "examples"


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


_LONG_EXAMPLES = (  # of verbs that tests of their own run in the same words
    "featcache.compression.recovering", "featcache.pipeline.compressing", "featcache.compression.pruning",
    "featcache.compression.quantization", "featcache.pipeline.job",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in _LONG_EXAMPLES else ()) for name in DOCTESTED],
)
def test_docstring_examples_run(name: str, workplace: Path) -> None:
    """Each ``>>>`` of the module gives what stands below it."""
    outcome = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert outcome.attempted > 0
    assert outcome.failed == 0, "the differences are in the captured output"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "last_line"),
    [
        pytest.param("main_job.py", "verify: every byte is as it was written", marks=pytest.mark.long),
        ("penalty_path.py", r"\d+ of \d+ features are used; .*"),
    ],
)
def test_scripts_run_in_their_small_form(script: str, last_line: str, tmp_path: Path) -> None:
    """On the first 200 digits, to the last line; a warning is an error."""
    pytest.importorskip("sklearn")
    command = [sys.executable, "-W", "error::UserWarning", str(SCRIPTS / script), str(tmp_path), "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(last_line, done.stdout.splitlines()[-1])


def _docstring_code() -> Iterator[str]:
    """Yield the code of each docstring example that is not skipped."""
    parser = doctest.DocTestParser()
    for name in DOCTESTED:
        tree = ast.parse(Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for example in parser.get_examples(ast.get_docstring(node) or ""):
                    if doctest.SKIP not in example.options:
                        yield example.source


def _names(code: str) -> set[str]:
    """Return the names that `code` uses: bare, as ``featcache.NAME``, or imported from the package."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "featcache":
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "featcache":
            names.update(alias.name for alias in node.names)
    return names


def names_in_examples() -> set[str]:
    """Return every name that stands in an executed example: docstrings, README, ``scripts/examples``."""
    readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    scripts = [file.read_text(encoding="utf-8") for file in sorted(SCRIPTS.glob("*.py"))]
    return set().union(*map(_names, [*_docstring_code(), *readme, *scripts]))


def test_every_public_name_stands_in_an_example() -> None:
    """Also the torch data set and scikit-learn's estimators, which have homes of their own."""
    members = vars(importlib.import_module("featcache.sklearn")).items()
    estimators = {name for name, value in members if hasattr(value, "fit") and value.__module__ == "featcache.sklearn"}
    assert {*featcache.__all__, "CachedFeatures", *estimators} - names_in_examples() == set()
