"""The model hub: what lies in its local cache, and what is fetched from it, which fails within seconds.

Nothing pickled is ever fetched: a repository without a safetensors file is refused.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import WeightsError

WHAT_TO_DO = "give weights=FILE.safetensors, or weights='random:SEED' for a network that was never trained"
HUB_FILES = ("model.safetensors", "open_clip_model.safetensors")
_PROBE_SECONDS = 5.0


def hub_cache() -> Path:
    """Return the directory of the hub's local cache, there or not: ``HF_HUB_CACHE``, or ``hub`` in ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_models() -> Iterator[str]:
    """Yield ``OWNER/MODEL`` of each model with a place in the hub's local cache, by name.

    Raises `WeightsError` where there is a cache that cannot be read.
    """
    place = hub_cache()
    try:
        names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise WeightsError(
            f"the hub's local cache must be a directory that can be read, {str(place)!r} is not "
            f"({error.strerror}): set HF_HUB_CACHE to another"
        ) from error
    for name in names:
        kind, _, repository = name.partition("--")
        if kind == "models" and repository.count("--") == 1:
            yield repository.replace("--", "/")


def cached_file(repository: str, file: str) -> Path | None:
    """Return the local path of a hub file where the hub's cache has it, else None; nobody is asked.

    Raises `WeightsError` where the cache cannot be read.
    """
    if not os.path.isdir(hub_cache() / f"models--{repository.replace('/', '--')}"):
        return None  # known without the hub's client, which takes a third of a second to import
    found = _look_up(repository, file, None)
    return Path(found) if isinstance(found, str) else None


def _look_up(repository: str, file: str, revision: str | None) -> object:
    """Return the path (str) of a file in the hub's cache, None where it is not, another object where the hub has none.

    Raises `WeightsError` where the cache cannot be read, or the repository's name is none.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError as error:
        raise WeightsError(f"a hub's model must be OWNER/MODEL[@REVISION], {repository!r} is none: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"{file} of {repository!r} must be readable in the hub's local cache ({reason}): remove it there, or set "
            "HF_HUB_CACHE to another"
        ) from error


def hub_weights(name: str, config: Mapping[str, Any]) -> Path:
    """Return the local path of the safetensors file of timm's pretrained configuration `config`, downloading it.

    Raises `WeightsError` where timm names no repository, the hub cannot be reached, or it has no safetensors file.
    """
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"timm names no hub repository with weights of {name!r}; {WHAT_TO_DO}")
    named = config.get("hf_hub_filename")
    files = [named] if named and named.endswith(".safetensors") else list(HUB_FILES)
    absent: WeightsError | None = None
    for file in files:
        try:
            return require_hub(repository, file)
        except WeightsError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            absent = absent or error
    assert absent is not None
    raise absent


def require_hub(repository: str, file: str) -> Path:
    """Return the local path of a hub file, from the hub's local cache or downloaded; fail within seconds.

    `repository`: ``OWNER/MODEL[@REVISION]``. Raises `WeightsError`.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    where = f"{file} of {repository!r}"
    cached = _look_up(repository, file, revision or None)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # the hub said that it has none when the others were downloaded
        raise WeightsError(f"the hub has no {where}; {WHAT_TO_DO}") from FileNotFoundError(file)
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise WeightsError(f"{where} is not in the hub's local cache and HF_HUB_OFFLINE is set; {WHAT_TO_DO}")
    _probe(huggingface_hub.constants.ENDPOINT, where)
    try:
        path = huggingface_hub.hf_hub_download(
            repository, file, revision=revision or None, etag_timeout=_PROBE_SECONDS, token=os.environ.get("HF_TOKEN")
        )
    except LocalEntryNotFoundError as error:  # an `EntryNotFoundError`, too, yet nobody said that there is none
        raise WeightsError(f"{where} cannot be downloaded ({_first_line(error)}); {WHAT_TO_DO}") from error.__cause__
    except EntryNotFoundError as error:
        raise WeightsError(f"the hub has no {where}; {WHAT_TO_DO}") from FileNotFoundError(str(error))
    except (HfHubHTTPError, OSError) as error:
        raise WeightsError(f"{where} cannot be downloaded ({_first_line(error)}); {WHAT_TO_DO}") from error
    return Path(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


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
        raise WeightsError(f"no model hub answers at {endpoint} to fetch {where} ({reason}); {WHAT_TO_DO}") from error
