"""Every verb of the command line, joined to the application in the order of ``--help``."""

# ruff: noqa: I001 - imported in the order of --help
from __future__ import annotations

import copy
from collections.abc import Sequence

import typer

from featcache.cli import caches, heads, models, bundles, use, serving, whole  # noqa: F401
from featcache.cli.application import app

__all__ = ["app", "application_for"]


def application_for(arguments: Sequence[str]) -> typer.Typer:
    """Return the application with only the verb that `arguments` begin with, else with all.

    typer makes the options of every verb it has, which takes as long as `info` or `predict` themselves.
    """
    asked = [verb for verb in app.registered_commands if verb.callback and verb.callback.__name__ in arguments[:1]]
    if not asked:
        return app
    one = copy.copy(app)
    one.registered_commands = asked
    return one
