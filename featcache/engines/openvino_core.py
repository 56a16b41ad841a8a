"""The one `openvino.Core` of this process.

A Core's processor plug-in gives the thread a signal stack of its own and, when it goes, puts back the one it found. Of
two Cores whose lives overlap, the first to go takes its stack with it and the second puts that back: the next signal
that Python handles there, Ctrl-C or the end of a child, ends the process (seen with OpenVINO 2026.4). A single Core
that stays never does.
"""

from __future__ import annotations

import threading
from pathlib import Path

import openvino

from featcache.errors import StorageError
from featcache.system.files import free_space_advice

_lock = threading.Lock()
_cores: list[openvino.Core] = []


def openvino_core() -> openvino.Core:
    """Return the process's Core, made when it is first asked for. Threads may share it."""
    with _lock:
        if not _cores:
            _cores.append(openvino.Core())
        return _cores[0]


def save_network(model: openvino.Model, path: Path) -> None:
    """Write `model` as ``path`` (.xml) and the .bin beside it, with its weights in float32: what was verified.

    Raises `StorageError` where they cannot be written, which OpenVINO reports without a number of the system's.
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise StorageError(f"{str(path)!r} must be writable, OpenVINO says: {error}; {free_space_advice()}") from error
