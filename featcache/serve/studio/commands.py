"""The command line of featcache, as a process of its own: begun at once, or held until it is told to begin."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

from featcache.errors import VerificationError
from featcache.system.json import parse_json

FEATCACHE = (sys.executable, "-c", "from featcache.cli import main; main()")
# begins at a byte on standard input: a process that no database knows of yet ends with the server that made it
FEATCACHE_ONCE_TOLD = (
    sys.executable, "-c",
    "import sys; sys.stdin.buffer.read(1) or sys.exit('the studio has ended'); from featcache.cli import main; main()",
)  # fmt: skip
_PATIENCE_SECONDS = 60.0


@functools.cache
def device_formats() -> list[dict[str, Any]]:
    """Return what ``featcache targets list`` says of each device format: its ``name``, ``installed``, ``needs``.

    It is asked once: what is installed later shows when the studio is opened again. Raises `VerificationError` where
    the command fails.
    """
    command = [*FEATCACHE, "targets", "list", "--json"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE_SECONDS
    )
    if done.returncode:
        raise VerificationError(f"featcache targets must list the formats, it says: {done.stderr.strip()[-300:]}")
    return list(parse_json(done.stdout)["targets"])
