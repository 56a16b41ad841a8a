"""Let Ctrl-C and SIGTERM wait until what is computed is committed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupts() -> Iterator[threading.Event]:
    """Yield an event that an interrupt sets; the interrupt itself is delivered when the block has ended.

    A second one is delivered at once. Raises `KeyboardInterrupt` where the handler of the first returned. Outside the
    main thread, where Python delivers no signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        event.set()
        if len(received) > 1:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _SIGNALS:
        # An ignored signal (nohup, a shell's background job) stays ignored; None belongs to a host program.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, note)
    try:
        yield event
    finally:
        restore()
    if received:
        signal.raise_signal(received[0])
        raise KeyboardInterrupt  # its handler did not end this: the work is unfinished all the same
