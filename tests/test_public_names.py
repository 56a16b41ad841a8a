"""Public names are what they are said to be, whatever has been imported: a verb is a function, a room a module."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import featcache

PACKAGE = Path(featcache.__file__).parent
ELSEWHERE = "featcache.formats.drivers."  # these run in environments of their own, beside packages that are not here

IMPORT_ALL = f"""
import importlib, pkgutil, types
import featcache

before = {{name: getattr(featcache, name) for name in featcache.__all__}}
for found in pkgutil.walk_packages(featcache.__path__, "featcache."):
    if not found.name.startswith({ELSEWHERE!r}):
        importlib.import_module(found.name)
for name in featcache.__all__:
    value = getattr(featcache, name)
    assert not isinstance(value, types.ModuleType), f"featcache.{{name}} is a module"
    assert value is before[name], f"featcache.{{name}} is another one now"
    assert name == "__version__" or callable(value), f"featcache.{{name}} cannot be called"
import featcache.bundle as bundle, featcache.model as model, featcache.distillation as distillation
for room in (bundle, model, distillation):
    assert isinstance(room, types.ModuleType), room
"""


def module_names(package: ModuleType) -> set[str]:
    """The names of the modules right inside a package."""
    return {found.name for found in pkgutil.iter_modules(package.__path__)}


def test_public_names_after_importing_every_module_are_the_documented_objects() -> None:
    """Python puts an imported submodule over its package's attribute of that name: no public name may share one."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT_ALL], check=True)


def test_no_public_name_is_the_name_of_a_room() -> None:
    """`import featcache.X as x` gives the room X for each of them, and no verb."""
    assert set(featcache.__all__) & module_names(featcache) == set()
    for room in module_names(featcache):
        assert isinstance(importlib.import_module(f"featcache.{room}"), ModuleType)


def test_no_rooms_facade_offers_a_name_of_one_of_its_files() -> None:
    """What a room's `__init__` re-exports stays what it was when a file of the room is imported after it."""
    shared = {}
    for file in PACKAGE.rglob("__init__.py"):
        name = ".".join(("featcache", *file.parent.relative_to(PACKAGE).parts))
        package = importlib.import_module(name)
        offered = {key for key, value in vars(package).items() if not isinstance(value, ModuleType)}
        if both := {*offered, *getattr(package, "__all__", ())} & module_names(package):
            shared[name] = both
    assert shared == {}
