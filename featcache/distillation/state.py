"""Checkpoints of a distillation: ``state-STEP.safetensors`` and, naming the one that counts, ``progress.json``.

The tensors are durable before the JSON names them, so a kill at any instant leaves the last whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from featcache.errors import CorruptError
from featcache.system.files import write_atomically
from featcache.system.json import DocumentKind, read_document

PROGRESS_FILE = "progress.json"
_PROGRESS = DocumentKind(
    "a checkpoint",
    make="make one with 'featcache distill'",
    renew="delete its directory to start again",
    keys=("step", "file", "sha256", "epochs", "identity", "losses"),
)


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Make `tensors` and JSON `notes` the checkpoint of `folder`, durable on return; the one before is removed."""
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    file = f"state-{step}.safetensors"
    write_atomically(folder / file, data)
    progress = {"step": step, "file": file, "sha256": hashlib.sha256(data).hexdigest(), **notes}
    write_atomically(folder / PROGRESS_FILE, (json.dumps(progress, indent=1) + "\n").encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


def read_notes(folder: Path) -> dict[str, Any] | None:
    """Return the JSON of the checkpoint in `folder`, None where there is none.

    Raises `CorruptError` where it is not what `save_state` wrote.
    """
    place = folder / PROGRESS_FILE
    return read_document(place, _PROGRESS) if os.path.lexists(place) else None


def load_tensors(folder: Path, notes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint that `notes` describes; `CorruptError` where they were changed."""
    from safetensors.torch import load

    place = folder / Path(str(notes["file"])).name
    try:
        data = place.read_bytes()
    except OSError as error:
        raise CorruptError(
            f"the checkpoint {str(place)!r} must be readable, got: {error.strerror}; delete {str(folder)!r}"
        ) from error
    if hashlib.sha256(data).hexdigest() != notes["sha256"]:
        raise CorruptError(f"the checkpoint {str(place)!r} was changed since it was written; delete {str(folder)!r}")
    tensors: dict[str, Tensor] = load(data)
    return tensors
