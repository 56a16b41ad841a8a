"""Every verb of the command line, joined to the application in the order of ``--help``."""

# ruff: noqa: I001 - imported in the order of --help
from __future__ import annotations

from featcache.cli import caches, heads, models, bundles, use, serving, whole  # noqa: F401
from featcache.cli.application import app

__all__ = ["app"]
