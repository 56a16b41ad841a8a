"""Every verb of the command line: where it is, and the application with only what an invocation needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.models import CommandInfo

from featcache.cli.application import app as _app

__all__ = ["VERBS", "application_for"]

VERBS = {
    "caches": ("backbones", "build", "info", "verify", "convert"),
    "heads": ("train", "distill"),
    "models": ("merge", "prune", "recover", "quantize", "compress"),
    "bundles": ("export", "pack", "unpack", "targets", "bench"),
    "use": ("predict", "evaluate"),
    "serving": ("serve", "studio", "map"),
    "whole": ("run",),
}  # the files of this room that have verbs, in the order of --help; a verb joins the application when its file is read


def __getattr__(name: str) -> Any:
    """Return `app`, the application with all verbs."""
    if name != "app":
        raise AttributeError(f"module 'featcache.cli.verbs' has no attribute {name!r}")
    for file in VERBS:
        import_module(f"featcache.cli.{file}")
    return _app


def application_for(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with only the verb that `arguments` begin with, else with all.

    Reading the options of every verb and making typer's of them takes as long as `info` or `predict` themselves; the
    list of all verbs needs their names alone.
    """
    asked = [file for file, verbs in VERBS.items() if set(arguments[:1]) & set(verbs)]
    if asked:
        import_module(f"featcache.cli.{asked[0]}")
        found = [verb for verb in _app.registered_commands if verb.callback and verb.callback.__name__ == arguments[0]]
    elif list(arguments) in ([], ["--help"], ["-h"]):
        found = [_without_options(verb) for verb in __getattr__("app").registered_commands]
    else:
        return __getattr__("app")  # type: ignore[no-any-return]
    one = copy.copy(_app)
    one.registered_commands = found
    return one


def _without_options(verb: CommandInfo) -> CommandInfo:
    """Return a verb that has nothing but its name and its description."""

    def bare() -> None:
        """Take no option."""

    assert verb.callback is not None
    bare.__name__, bare.__doc__ = verb.callback.__name__, verb.callback.__doc__
    result = copy.copy(verb)
    result.callback = bare
    return result
