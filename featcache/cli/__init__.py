"""The command line: each verb parses, calls the function of the same name, and prints what it returned.

Results go to stdout (as one JSON object with ``--json``), progress and warnings to stderr. An error the user can mend
is one line and exit status 1. Heavy imports stay inside the verbs, so that ``--help`` starts at once; the verbs' own
stay inside `main`, so that an interrupt while they load is one line, too. While they load, it shows how busy the
machine is: maths libraries, which come later, get the processors that are free.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from featcache.cli.border import run_to_exit_status
from featcache.cli.output import restart_in_utf8
from featcache.system.load import ProcessorTimes, read_processor_times
from featcache.system.process import use_free_processors

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; an error the user can mend is one line on stderr and exit status 1."""
    restart_in_utf8()
    started = read_processor_times()
    sys.exit(run_to_exit_status(lambda: _run(started)))


def _run(started: ProcessorTimes | None) -> None:
    from featcache.cli import verbs

    use_free_processors(started)
    completes = "_FEATCACHE_COMPLETE" in os.environ  # a shell asks what could be written
    (verbs.app if completes else verbs.application_for(sys.argv[1:]))()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'featcache.cli' has no attribute {name!r}")
    from featcache.cli.verbs import app

    return app
