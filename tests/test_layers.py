"""The order of the rooms: each imports only rooms above it, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "featcache"

# From the ground up: a room may import the ones before it. `featcache/README.md` says what each is for.
ROOMS = (
    "errors", "system", "recipe", "images", "datasets", "backbone", "engines", "store", "cache", "extract", "heads",
    "train", "distillation", "model", "graph", "compression", "formats", "runtime", "bundle", "pipeline",
    "verification", "serve", "sklearn", "testing", "cli",
)  # fmt: skip
MOST_ROOMS = 26  # with the package's own __init__


def _module_files(package: Path) -> dict[str, Path]:
    """Return ``{dotted name below the package: file}``; a package's ``__init__.py`` stands under its own name."""
    files = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def _imported(source: str, modules: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules of the package that `source` imports: at its top, inside functions, for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name == "featcache" or name.startswith("featcache."):
                below = name.removeprefix("featcache").removeprefix(".")
                yield below if below in modules else below.rpartition(".")[0]


def upward_imports(sources: Mapping[str, str]) -> list[str]:
    """Return a line for each import of a room that is not above the importing one."""
    problems = []
    for module, source in sources.items():
        room = module.partition(".")[0]
        for imported in _imported(source, sources):
            other = imported.partition(".")[0]
            if room and other and other != room and ROOMS.index(other) > ROOMS.index(room):
                problems.append(f"{module} imports {imported}")
            if room and not other:
                problems.append(f"{module} imports the package itself")
    return sorted(set(problems))


def circles(sources: Mapping[str, str]) -> list[str]:
    """Return the modules that reach themselves through imports."""
    arrows = {
        module: {name for name in _imported(source, sources) if name != module} for module, source in sources.items()
    }
    found = []
    for module in arrows:
        reached: set[str] = set()
        waiting = list(arrows[module])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting.extend(arrows.get(name, ()))
        if module in reached:
            found.append(module)
    return sorted(found)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """The text of every module."""
    return {name: file.read_text(encoding="utf-8") for name, file in _module_files(PACKAGE).items()}


def test_rooms_on_disk_are_the_rooms_named(sources: dict[str, str]) -> None:
    """Every room has its place in the order, and there are no more than a newcomer can keep in mind."""
    on_disk = {name.partition(".")[0] for name in sources} - {""}
    assert on_disk == set(ROOMS)
    assert len(on_disk) + 1 <= MOST_ROOMS


def test_imports_go_to_rooms_above_only(sources: dict[str, str]) -> None:
    """Lazy imports and those for types count: they are what the reader has to know, too."""
    assert upward_imports(sources) == []


def test_no_files_import_each_other_in_a_circle(sources: dict[str, str]) -> None:
    """Within a room as between rooms."""
    assert circles(sources) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from featcache.train import train_head",
        "def f():\n    from featcache.cli.application import app",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from featcache.runtime import bundle",
        "import featcache.bundle.exporting",
    ],
)
def test_a_forbidden_import_is_found(sources: dict[str, str], statement: str) -> None:
    """The gate closes: one import downwards, at the top, in a function, for types, in the other form, is named."""
    changed = {**sources, "store": sources["store"] + "\n" + statement + "\n"}
    assert len(upward_imports(changed)) == 1


def test_a_circle_is_found(sources: dict[str, str]) -> None:
    """Two files of one room that import each other are both named."""
    changed = {**sources, "images.views": sources["images.views"] + "\nfrom featcache.images import load\n"}
    assert "images.views" in circles(changed)
