"""The writer's lock: one writer per store across processes, released by the system however its holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from featcache.errors import LockedError, StorageError
from featcache.system.json import parse_json

_POLL_SECONDS = 0.05
_held: weakref.WeakSet[WriteLock] = weakref.WeakSet()


class WriteLock:
    """An exclusive lock on the file `path`, which names the holder's process and host while it is held."""

    def __init__(self, path: Path, *, wait_seconds: float) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        except OSError as error:
            raise StorageError(
                f"{str(path)!r} must be writable, got: {error.strerror}; free space or rights"
            ) from error
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    continue
                holder = _describe_holder(self._file)
                os.close(self._file)
                raise LockedError(
                    f"{str(path.parent)!r} must have one writer at a time, {holder} is writing to it: wait "
                    "('build --wait SECONDS'), or stop it"
                ) from None
        self._owner: int | None = os.getpid()
        _held.add(self)
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except OSError:
            # Only the name of the holder is lost: the lock itself holds, and a full disk is reported by what follows.
            return

    @property
    def held(self) -> bool:
        """Whether this process holds the lock; a forked child does not."""
        return self._owner == os.getpid()

    def release(self) -> None:
        """Let another writer in; a second call does nothing."""
        if self._owner is not None:
            self._owner = None
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            os.close(self._file)

    def forget(self) -> None:
        """Give up a forked child's copy, which would else keep the lock after the parent's death."""
        if self._owner is not None:
            self._owner = None
            os.close(self._file)


def _describe_holder(file: int) -> str:
    try:
        holder = parse_json(os.pread(file, 4096, 0))
        return f"process {holder['pid']} on host {holder['host']!r}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)
