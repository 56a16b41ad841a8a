"""What docstrings promise: who raises says what, and public names have the sections a reader looks for."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import featcache
from featcache.engines import Engine
from featcache.formats import Runner, Target
from featcache.heads import Head
from featcache.store import FeatureStore, StoreReader, StoreWriter

PACKAGE = Path(featcache.__file__).resolve().parent
LEAST_SHARE = 0.95
_NOT_ERRORS = {"StopIteration", "Exit", "SystemExit"}  # how Python and the command line end something
INTERFACES = (Engine, FeatureStore, StoreReader, StoreWriter, Target, Runner, Head)


def raised_by(function: ast.FunctionDef) -> set[str]:
    """Return the names of the exception classes in the function's own ``raise`` statements."""
    names: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
                continue
            if isinstance(child, ast.Raise) and child.exc is not None:
                error = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
                if isinstance(error, ast.Name) and error.id[0].isupper():
                    names.add(error.id)
            walk(child)

    walk(function)
    return names - _NOT_ERRORS


def public_functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions and methods of a module or class with their dotted names."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node


def silent_functions(source: str, module: str) -> tuple[list[str], int]:
    """Return the public functions that raise and do not name each error in their docstring, and how many raise."""
    silent, count = [], 0
    for name, function in public_functions(ast.parse(source).body, module):
        if errors := raised_by(function):
            count += 1
            docstring = ast.get_docstring(function) or ""
            if any(error not in docstring for error in errors) and "aises as `" not in docstring:
                silent.append(f"{name}: {', '.join(sorted(errors))}")
    return silent, count


def test_functions_that_raise_say_what_they_raise() -> None:
    """At least 95 of a hundred name each of their errors."""
    silent: list[str] = []
    total = 0
    for file in sorted(PACKAGE.rglob("*.py")):
        found, count = silent_functions(file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix())
        silent += found
        total += count
    assert total > 100
    assert len(silent) <= (1 - LEAST_SHARE) * total, silent


def test_a_function_that_is_silent_is_found() -> None:
    """The gate closes: an error that the docstring leaves out is named."""
    source = 'def f():\n    """Return nothing."""\n    raise InputError("x")\n'
    assert silent_functions(source, "m") == (["m.f: InputError"], 1)
    assert silent_functions(source.replace("nothing.", "nothing; `InputError` always."), "m") == ([], 1)


def _sections(docstring: str) -> set[str]:
    """Return the numpydoc sections of a docstring: a word with a line of dashes under it."""
    lines = [line.strip() for line in docstring.splitlines()]
    return {lines[i] for i in range(len(lines) - 1) if lines[i] and set(lines[i + 1]) == {"-"}}


@pytest.mark.parametrize("name", [name for name in featcache.__all__ if name != "__version__"])
def test_public_names_have_numpydoc_sections(name: str) -> None:
    """Parameters where there are some, what comes back, and an example, which test_examples runs."""
    value = getattr(featcache, name)
    sections = _sections(inspect.getdoc(value) or "")
    wanted = set() if inspect.isclass(value) and issubclass(value, Exception) else {"Examples"}
    if inspect.isfunction(value):
        wanted |= {"Parameters", "Returns"}
    assert wanted <= sections, f"{name} lacks {sorted(wanted - sections)}"


@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.__name__)
def test_interfaces_have_examples(interface: type) -> None:
    """An interface shows how it is used."""
    assert "Examples" in _sections(inspect.getdoc(interface) or "")
