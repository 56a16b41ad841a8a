"""timm's networks by name: made with weights from the hub, drawn, or left to the caller, and how they see an image."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from featcache.backbone.hub import hub_weights, require_hub
from featcache.backbone.timm_import import import_timm
from featcache.backbone.weights_file import read_header
from featcache.errors import BackboneError, InputError, WeightsError
from featcache.recipe import Preprocessing

_HUB_PREFIX = "hf-hub:"
# Ours to decide, or without a single feature vector: they would change what is loaded, not what the network is.
_REFUSED_KWARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


def check_kwargs(kwargs: dict[str, Any], *, keep_classifier: bool) -> dict[str, Any]:
    """Return `kwargs` for ``timm.create_model`` as a Recipe holds them; `InputError` for what is not the network's."""
    refused = sorted(_REFUSED_KWARGS & set(kwargs))
    if refused:
        raise InputError(f"model_kwargs must describe the network only, got {refused!r}; use weights= for its weights")
    if kwargs.get("features_only"):
        raise InputError("model_kwargs must not hold features_only; name the stages in outputs instead")
    if kwargs.get("in_chans", 3) != 3:
        raise InputError(f"backbones must take 3 channels (RGB), got in_chans={kwargs['in_chans']!r}")
    try:
        json.dumps(kwargs, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"model_kwargs must be JSON values, got {kwargs!r}") from error
    # The classifier does not take part in a feature: with or without it, the backbone is the same one.
    if not keep_classifier or not kwargs.get("num_classes"):
        kwargs.pop("num_classes", None)
    return kwargs


def create_network(name: str, kwargs: Mapping[str, Any], **loading: Any) -> nn.Module:
    """Return timm's network `name`, its weights drawn from torch's generator unless `loading` says otherwise.

    Raises `BackboneError` where there is none of that name, or `kwargs` do not suit it.
    """
    timm = import_timm()
    if name.startswith(_HUB_PREFIX):
        require_hub(name.removeprefix(_HUB_PREFIX), "config.json")
    elif not timm.is_model(name.partition(".")[0]):
        raise BackboneError(
            f"the backbone must be a timm model, got {name!r}; nearest: {', '.join(_nearest(timm, name))}"
        )
    try:
        network: nn.Module = timm.create_model(name, **loading, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()
        if "pretrained tag" in str(error):
            tags = [full for full in timm.list_pretrained() if full.startswith(f"{name.partition('.')[0]}.")]
            raise BackboneError(f"{name!r} is not a tag timm knows; there are {', '.join(tags) or 'none'}") from error
        raise BackboneError(
            f"backbone {name!r} cannot be made with model_kwargs {dict(kwargs)!r}: {reason[0] if reason else error!r}"
        ) from error
    return network


def create_from_hub(name: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """Return the network with the hub's weights, and its full name with timm's tag."""
    plain = create_network(name, kwargs)
    config: dict[str, Any] = plain.pretrained_cfg  # type: ignore[assignment]
    path = hub_weights(name, config)
    read_header(path)  # says of one that was cut short what timm's loader would not
    # timm's own loader adapts names and shapes where a checkpoint needs it; only the download is ours, so that
    # it fails quickly and never falls back to a pickle.
    network = create_network(
        name, kwargs, pretrained=True, pretrained_cfg_overlay={"file": str(path), "source": "", "url": ""}
    )
    tag = config.get("tag")
    full = f"{name}.{tag}" if tag and "." not in name and not name.startswith(_HUB_PREFIX) else name
    return network, full


def create_random(name: str, kwargs: Mapping[str, Any], source: str) -> nn.Module:
    """Return the network that ``random:SEED``, `source`, means; `WeightsError` where SEED is no whole number."""
    digits = source.removeprefix("random:")
    if not digits.isdecimal():
        raise WeightsError(f"random weights must be 'random:SEED' with a whole number, got {source!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digits))
        network = create_network(name, kwargs)
    for module in network.modules():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            nn.init.ones_(scale)  # zeroed so that training starts from shortcuts alone; untrained, a branch must count
    return network


def _nearest(timm: Any, name: str) -> list[str]:
    known = timm.list_models()
    close = difflib.get_close_matches(name, [*known, *timm.list_pretrained()], n=4, cutoff=0.5)
    return close or [f"none of {len(known)}; see timm.list_models()"]


def drop_classifier(network: nn.Module) -> None:
    """Take the classifier away, where there is one."""
    if getattr(network, "num_classes", 0) and hasattr(network, "reset_classifier"):
        reset: Any = network.reset_classifier
        reset(0)


def preprocessing_of(
    network: nn.Module,
    name: str,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    side: int | Sequence[int] | None,
) -> Preprocessing:
    """Return timm's evaluation transform of this model, with `mean`, `std` and the input's `side` replaced if given.

    An input of another height than width is a squash, whatever timm says. Raises `BackboneError` where it is no centre
    crop or squash of an image of 3 channels.
    """
    timm = import_timm()
    wanted = {}
    if side is not None:
        wanted["input_size"] = (3, side, side) if isinstance(side, int) else (3, *side)
    config = timm.data.resolve_model_data_config(network, args=wanted)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise BackboneError(f"a backbone must take 3 channels (RGB), {name!r} takes {channels!r}")
    crop_pct, mode = config["crop_pct"], config["crop_mode"]
    if height != width:  # one number cannot say how to cover it before a crop: the whole image is scaled to it
        crop_pct, mode = 1.0, "squash"
    if mode not in ("center", "squash") or crop_pct > 1 or (mode == "squash" and crop_pct != 1):
        raise BackboneError(
            f"the preprocessing must be a centre crop or a squash to the input size, {name!r} has crop_mode {mode!r} "
            f"with crop_pct {crop_pct!r}; choose another backbone or tag"
        )
    return Preprocessing(
        height=height,
        width=width,
        resize=math.floor(min(height, width) / crop_pct) if mode == "center" else max(height, width),
        interpolation="bilinear" if config["interpolation"] == "random" else config["interpolation"],
        crop_mode=mode,
        mean=_triple("mean", config["mean"] if mean is None else mean),
        std=_triple("std", config["std"] if std is None else std),
    )


def preprocessing_of_file(values: Any, source: str) -> Preprocessing | None:
    """Return the preprocessing a weights file brings, None where it brings none; `WeightsError` for part of one."""
    if values is None:
        return None
    names = {field.name for field in dataclasses.fields(Preprocessing)}
    if not isinstance(values, dict) or set(values) != names:
        raise WeightsError(
            f"the metadata 'preprocessing' of {source!r} must hold exactly {sorted(names)!r}, got {values!r}"
        )
    return Preprocessing.from_json(values)


def _triple(what: str, values: Sequence[float]) -> tuple[float, float, float]:
    numbers = [values] * 3 if isinstance(values, (int, float)) else list(values)
    if len(numbers) != 3 or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise InputError(f"{what} must be three finite numbers, got {values!r}")
    return (float(numbers[0]), float(numbers[1]), float(numbers[2]))
