"""How much memory a device file takes: the growth of a fresh process from before it opens the file to its peak."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.formats.interface import Runner, Target
from featcache.formats.registry import find_target

_RUNS = 5
_ROOT = Path(__file__).resolve().parent.parent.parent


def status_bytes(key: str) -> int | None:
    """Return a figure of this process in bytes (``VmRSS``: resident, ``VmHWM``: its peak); None off Linux."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:")), None)
    except OSError:
        return None


def resident_bytes(
    target: Target, runner: Runner, files: Sequence[Path], *, example: npt.NDArray[Any], threads: int
) -> int | None:
    """Return the bytes of memory that the opened `files` take in a process that runs them; None where untold."""
    count = runner.resident_bytes()
    if count is not None or target.environment is not None:
        return count
    return measure_resident(target.name, files, example=example, threads=threads)


def measure_resident(format: str, files: Sequence[Path], *, example: npt.NDArray[Any], threads: int) -> int | None:
    """Return the bytes that opening `files` of `format` and running a few images adds to a process; None off Linux.

    The runtime's own code counts, Python and numpy do not. None too where the process fails.
    """
    given = {"shape": example.shape, "dtype": example.dtype.name, "data": base64.b64encode(example.tobytes()).decode()}
    request = {"format": format, "files": [str(path) for path in files], "example": given, "threads": threads}
    python_path = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join([str(_ROOT), *([python_path] if python_path else [])])
    done = subprocess.run(
        [sys.executable, "-m", "featcache.formats.memory"],
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode:
        return None
    answer: int | None = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Do what `measure_resident` asks, in the fresh process."""
    request = json.load(sys.stdin)
    target = find_target(request["format"])
    given = request["example"]
    image = np.frombuffer(base64.b64decode(given["data"]), dtype=given["dtype"]).reshape(given["shape"])
    before = status_bytes("VmRSS")
    with target.open([Path(name) for name in request["files"]], threads=request["threads"]) as runner:
        for _ in range(_RUNS):
            runner.run(image)
        peak = status_bytes("VmHWM")
    print(json.dumps(None if before is None or peak is None else peak - before))


if __name__ == "__main__":
    main()
