"""The command line: each verb parses, calls the function of the same name, and prints what it returned.

Results go to stdout (as one JSON object with ``--json``), progress and warnings to stderr. An error the user can mend
is one line and exit status 1. Heavy imports stay inside the verbs, so that ``--help`` starts at once.
"""

# ruff: noqa: I001 - imported in the order of --help
from __future__ import annotations

import sys

from featcache.cli import caches, heads, models, bundles, use, whole  # noqa: F401
from featcache.cli.application import app
from featcache.cli.border import run_to_exit_status

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error the user can mend is one line on stderr and exit status 1."""
    sys.exit(run_to_exit_status(app))
