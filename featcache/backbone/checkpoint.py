"""Read a safetensors checkpoint and fit it into a network. Nothing pickled is ever loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbone.hub import WHAT_TO_DO
from featcache.errors import MissingError, WeightsError

_LISTED_KEYS = 4


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a ``.safetensors`` file by name, and its metadata with JSON values decoded.

    Raises `MissingError` where there is no such file and `WeightsError` where it is not safetensors.
    """
    import safetensors
    from safetensors import safe_open

    if not path.is_file():
        raise MissingError(f"the weights must be a file, {str(path)!r} is not; {WHAT_TO_DO}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"the weights must be a safetensors file, {str(path)!r} is not one: {error}") from error
    claimed = metadata.get("digest")
    if claimed is not None and claimed != checkpoint_digest(state, metadata):
        raise WeightsError(
            f"the weights {str(path)!r} were changed since they were written (their digest differs): {WHAT_TO_DO}"
        )
    return state, {name: _decoded(value) for name, value in metadata.items()}


def checkpoint_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the sha256 over all tensors (name, dtype, shape, bytes, sorted by name) and metadata but ``digest``.

    Files written here carry it in their metadata, so that a changed byte is noticed on reading.
    """
    entries = {name: value for name, value in metadata.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _decoded(value: str) -> Any:
    """Return a JSON list or object decoded, and any other text as it is."""
    if not value.startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def fit_state(network: nn.Module, state: Mapping[str, Tensor], *, optional: Set[str], source: str, model: str) -> None:
    """Copy `state` into `network`, every name and shape having to match.

    `optional`: names that the file may hold and that are not needed (those of the dropped classifier).
    Raises `WeightsError` naming missing, unexpected and misshapen keys.
    """
    current = network.state_dict()
    # Batch norm's step counter takes no part in evaluation; many converters leave it out.
    missing = sorted(name for name in current.keys() - state.keys() if not name.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - current.keys() - optional)
    shapes = sorted(
        f"{name} {tuple(state[name].shape)} for {tuple(current[name].shape)}"
        for name in current.keys() & state.keys()
        if state[name].shape != current[name].shape
    )
    kinds = sorted(
        f"{name} {state[name].dtype} for {current[name].dtype}"
        for name in current.keys() & state.keys()
        if state[name].is_floating_point() != current[name].is_floating_point()
    )
    problems = [
        f"{what}: {_list_keys(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes), ("type", kinds))
        if names
    ]
    if problems:
        raise WeightsError(
            f"the weights must fit {model!r}, those of {source!r} do not ({'; '.join(problems)}); "
            "name the backbone and model_kwargs they were made for"
        )
    with torch.no_grad():
        for name, tensor in current.items():
            if name in state:
                tensor.copy_(state[name])


def _list_keys(names: list[str]) -> str:
    rest = len(names) - _LISTED_KEYS
    return ", ".join(names[:_LISTED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
