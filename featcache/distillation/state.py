"""Checkpoints of a distillation: ``state-STEP.safetensors`` and, naming the one that counts, ``progress.json``.

The tensors are durable before the JSON names them, so a kill at any instant leaves the last whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from featcache.errors import CorruptError
from featcache.system.files import write_atomically


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Make `tensors` and JSON `notes` the checkpoint of `folder`, durable on return; the one before is removed."""
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    file = f"state-{step}.safetensors"
    write_atomically(folder / file, data)
    progress = {"step": step, "file": file, "sha256": hashlib.sha256(data).hexdigest(), **notes}
    write_atomically(folder / "progress.json", (json.dumps(progress, indent=1) + "\n").encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != file:
            old.unlink()


def read_notes(folder: Path) -> dict[str, Any] | None:
    """Return the JSON of the checkpoint in `folder`, None where there is none; `CorruptError` where it is not JSON."""
    place = folder / "progress.json"
    if not place.exists():
        return None
    try:
        notes = json.loads(place.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"the checkpoint {str(place)!r} must be JSON, got: {error}; delete {str(folder)!r}"
        ) from error
    if not isinstance(notes, dict) or not {"step", "file", "sha256"} <= set(notes):
        raise CorruptError(f"{str(place)!r} must describe a checkpoint, it does not; delete {str(folder)!r}")
    return notes


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
