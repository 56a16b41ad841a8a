"""How many processors are free: of those this process may use, what others leave idle.

Two readings of the processors' times are compared, one from before something that had to be done anyway: so knowing
costs no wait.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from featcache.system.threads import affinity_count, allowed_processors

STAT = Path("/proc/stat")  # Linux's; without it every processor counts as free
LEAST_SECONDS = 0.05  # between two readings: the system counts in hundredths of a second
_IDLE = (3, 4)  # of the columns of a processor: idle, and idle while the disk is waited for


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Seconds so far, at the time `at`: `idle`, all processors this process may use together; `own`: this process."""

    at: float
    idle: float
    own: float


def read_processor_times(stat: Path = STAT) -> ProcessorTimes | None:
    """Return the times of now, None where the system does not tell. `stat`: the file it tells them in."""
    try:
        lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
        ticks = os.sysconf("SC_CLK_TCK")
        allowed = {f"cpu{number}" for number in allowed_processors()}
        idle = sum(int(columns[1 + column]) for columns in lines if columns[0] in allowed for column in _IDLE)
    except (OSError, ValueError, IndexError):
        return None
    return ProcessorTimes(time.monotonic(), idle / ticks, time.process_time())


def free_processors(before: ProcessorTimes | None, now: ProcessorTimes | None) -> int:
    """Return how many of the processors this process may use others left free between two readings, at least 1.

    All of them where that cannot be known: without two readings, or less than `LEAST_SECONDS` apart.

    >>> from featcache.system.threads import affinity_count
    >>> free_processors(None, None) == affinity_count()
    True
    """
    allowed = affinity_count()
    if before is None or now is None or now.at - before.at < LEAST_SECONDS:
        return allowed
    seconds = now.at - before.at
    others = allowed - (now.idle - before.idle) / seconds - (now.own - before.own) / seconds
    return min(allowed, max(1, allowed - round(others)))
