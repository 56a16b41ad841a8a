"""Read a safetensors checkpoint, fit it into a network, and fetch one from the model hub.

Nothing pickled is ever loaded: a hub repository without a safetensors file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import MissingError, WeightsError

_PROBE_SECONDS = 5.0
_LISTED_KEYS = 4
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors")
_WHAT_TO_DO = "give weights=FILE.safetensors, or weights='random:SEED' for a network that was never trained"


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a ``.safetensors`` file by name, and its metadata with JSON values decoded.

    Raises `MissingError` where there is no such file and `WeightsError` where it is not safetensors.
    """
    import safetensors
    from safetensors import safe_open

    if not path.is_file():
        raise MissingError(f"the weights must be a file, {str(path)!r} is not; {_WHAT_TO_DO}")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"the weights must be a safetensors file, {str(path)!r} is not one: {error}") from error
    claimed = metadata.get("digest")
    if claimed is not None and claimed != checkpoint_digest(state, metadata):
        raise WeightsError(
            f"the weights {str(path)!r} were changed since they were written (their digest differs): {_WHAT_TO_DO}"
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


def hub_weights(name: str, config: Mapping[str, Any]) -> Path:
    """Return the local path of the safetensors file of timm's pretrained configuration `config`, downloading it.

    Raises `WeightsError` where timm names no repository, the hub cannot be reached, or it has no safetensors file.
    """
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"timm names no hub repository with weights of {name!r}; {_WHAT_TO_DO}")
    named = config.get("hf_hub_filename")
    files = [named] if named and named.endswith(".safetensors") else list(_HUB_FILES)
    last: WeightsError | None = None
    for file in files:
        try:
            return require_hub(repository, file)
        except WeightsError as error:
            last = error
            if not isinstance(error.__cause__, FileNotFoundError):
                break
    assert last is not None
    raise last


def require_hub(repository: str, file: str) -> Path:
    """Return the local path of a hub file, from the hub's local cache or downloaded; fail within seconds.

    `repository`: ``OWNER/MODEL[@REVISION]``. Raises `WeightsError`.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repository, _, revision = repository.partition("@")
    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
    if isinstance(cached, str):
        return Path(cached)
    where = f"{file} of {repository!r}"
    if cached is huggingface_hub._CACHED_NO_EXIST:  # the hub said so when the others were downloaded
        raise WeightsError(f"the hub has no {where}; {_WHAT_TO_DO}") from FileNotFoundError(file)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{where} is not in the hub's local cache and HF_HUB_OFFLINE is set; {_WHAT_TO_DO}")
    _probe(huggingface_hub.constants.ENDPOINT, where)
    try:
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision or None, etag_timeout=_PROBE_SECONDS, token=os.environ.get("HF_TOKEN")
        )
    except EntryNotFoundError as error:
        raise WeightsError(f"the hub has no {where}; {_WHAT_TO_DO}") from FileNotFoundError(str(error))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise WeightsError(f"{where} cannot be downloaded ({reason}); {_WHAT_TO_DO}") from error
    return Path(path)


def _probe(endpoint: str, where: str) -> None:
    """Raise `WeightsError` where the hub does not answer: its own client would retry for half a minute."""
    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answered; what it says about the file is asked next
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(f"no model hub answers at {endpoint} to fetch {where} ({reason}); {_WHAT_TO_DO}") from error
