"""`ServeSettings`: the bounds of a server, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from featcache.errors import InputError
from featcache.system.threads import processor_count


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server batches, and what it takes at most.

    Parameters
    ----------
    format
        Which device file of each bundle runs; None: its first.
    threads
        How many compute, and how many inputs are prepared at once; None: all processors.
    max_batch
        Inputs that a batch holds at most; fewer where smaller batches are faster here, which is tried at the start.
    max_delay_ms
        How long a batch waits at most for inputs that are being prepared, in milliseconds.
    max_queue
        Inputs that may wait or be worked on at once; more are refused with 503.
    max_body_mb
        Size of a request's body at most, in MB (10⁶ bytes).
    body_seconds
        How long a request's body may take to arrive.
    reload_seconds
        Between two looks for bundles that were replaced on disk.

    Raises
    ------
    InputError
        For a bound that is not positive, or a negative delay.
    """

    format: str | None = None
    threads: int | None = None
    max_batch: int = 16
    max_delay_ms: float = 5.0
    max_queue: int = 256
    max_body_mb: float = 32.0
    body_seconds: float = 30.0
    reload_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("threads", "max_batch", "max_queue", "max_body_mb", "body_seconds", "reload_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0, got {value!r}")
        if not 0 <= self.max_delay_ms <= 10_000:
            raise InputError(f"max_delay_ms must be 0 to 10000, got {self.max_delay_ms!r}")

    @property
    def thread_count(self) -> int:
        """How many threads that is here."""
        return self.threads or processor_count()

    @property
    def max_body_bytes(self) -> int:
        """The largest body in bytes."""
        return int(self.max_body_mb * 1e6)
