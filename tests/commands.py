"""The command line, run by tests in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def featcache(*arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    code = "from featcache.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True, encoding="utf-8", cwd=cwd, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr[-2000:]
    return done


def result(*arguments: object) -> dict:
    return json.loads(featcache(*arguments, "--json").stdout)


def refusal(*arguments: object) -> str:
    """Return the one line that a refused command prints."""
    done = featcache(*arguments, expect=1)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("featcache: ")
    assert done.stdout == ""
    return lines[0]
