"""Load a frozen timm backbone: its network, its preprocessing and the digest of its weights.

**The feature** is the input of timm's final classifier: ``forward_head(forward_features(x), pre_logits=True)``. For
MobileNetV3 that is the vector after ``conv_head`` (1024 or 1280 wide), not ``num_features`` (576 or 960); for a vision
transformer it is the pooled token after ``fc_norm``. A linear head on it is exactly what timm's own classifier is.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.checkpoint import fit_state, hub_weights, read_checkpoint, require_hub
from featcache.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.errors import BackboneError, InputError, WeightsError
from featcache.recipe import Preprocessing
from featcache.timm_import import import_timm

_HUB_PREFIX = "hf-hub:"
_OUTPUT = re.compile(r"(stage|cls-|mean-)([1-9][0-9]*)")
# Ours to decide, or without a single feature vector: they would change what is loaded, not what the network is.
_REFUSED_KWARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


class Backbone(nn.Module):
    """A frozen network in eval mode whose named outputs can be stored.

    `network`: a timm module with ``forward_features`` and ``forward_head``, without its classifier unless ``logits``
    is among the outputs. `model_name`, `model_kwargs`: what ``timm.create_model`` was given. `weights_label`: a file
    name, ``hub`` or ``random:SEED``. `weights_sha256`: that of the weights the network was made of, by
    default of those it has now (`weights_digest`). `model_digest`: sha256 of a changed (pruned, quantized) backbone,
    None for timm's own.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        model_name: str,
        model_kwargs: Mapping[str, Any],
        preprocessing: Preprocessing,
        weights_label: str,
        outputs: Sequence[str] = ("features",),
        weights_sha256: str | None = None,
        model_digest: str | None = None,
    ) -> None:
        super().__init__()
        if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
            raise BackboneError(
                f"a backbone must have forward_features and forward_head, {model_name!r} has not; choose another"
            )
        self.network = network
        self.model_name = model_name
        self.model_kwargs = dict(model_kwargs)
        self.preprocessing = preprocessing
        self.weights_label = weights_label
        self.model_digest = model_digest
        self.outputs = tuple(outputs)
        self._layers = _layers_of(network, self.outputs, model_name)
        self.requires_grad_(False)
        self.eval()
        self.weights_sha256 = weights_sha256 or weights_digest(network)

    @property
    def num_features(self) -> int:
        """Return the length of the feature vector (of the first output where "features" is not stored)."""
        index = self.outputs.index("features") if "features" in self.outputs else 0
        return math.prod(self.output_shapes[index])

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of one row of each output, e.g. ``((1280,),)``, by running the network as it is now."""
        parameter = next(self.network.parameters(), torch.zeros(()))
        image = parameter.new_zeros(1, 3, self.preprocessing.height, self.preprocessing.width)
        with torch.inference_mode():
            shapes = tuple(tuple(value.shape[1:]) for value in self(image))
        for name, shape in zip(self.outputs, shapes, strict=True):
            if name != "tokens" and len(shape) != 1:
                raise BackboneError(
                    f"output {name!r} of {self.model_name!r} must be one vector per image, it has shape {shape!r}; "
                    "leave out model_kwargs that switch pooling off"
                )
        return shapes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one float tensor (n, *shape) per output, for normalised images (n, 3, height, width) float."""
        network: Any = self.network
        layers: dict[str, Tensor] = {}
        if self._layers:
            maps, layers = self._forward_layers(images)
        else:
            maps = network.forward_features(images)
        values = []
        for name in self.outputs:
            if name == "features":
                values.append(network.forward_head(maps, pre_logits=True))
            elif name == "logits":
                values.append(network.forward_head(maps))
            else:
                values.append(layers[name])
        return tuple(values)

    def _forward_layers(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        network: Any = self.network
        indices = sorted(set(self._layers.values()))
        results: dict[str, Tensor] = {}
        if _is_transformer(network):
            # The final norm is applied to every block's tokens, as DINOv2's probes do (Oquab et al. 2023).
            maps, taken = network.forward_intermediates(
                images, indices=indices, norm=True, output_fmt="NCHW", return_prefix_tokens=True
            )
            for name, index in self._layers.items():
                entry = taken[indices.index(index)]
                grid, prefix = entry if isinstance(entry, tuple) else (entry, None)
                if name == "tokens":
                    results[name] = grid.permute(0, 2, 3, 1)
                elif name.startswith("cls-"):
                    assert prefix is not None
                    results[name] = prefix[:, 0]
                else:
                    results[name] = grid.mean(dim=(2, 3))
            return maps, results
        maps, taken = network.forward_intermediates(images, indices=indices)
        for name, index in self._layers.items():
            results[name] = taken[indices.index(index)].mean(dim=(2, 3))
        return maps, results


class ImageNetwork(nn.Module):
    """The whole graph an engine runs: uint8 images in, the backbone's outputs out, normalisation inside.

    Takes (n, height, width, 3) uint8 RGB and returns one float32 tensor (n, *shape) per output.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        mean = torch.tensor(backbone.preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(backbone.preprocessing.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("offset", (mean / std).float(), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for uint8 images (n, height, width, 3)."""
        normalised = images.float() * self.scale - self.offset
        outputs: tuple[Tensor, ...] = self.backbone(normalised.permute(0, 3, 1, 2))  # channels last already
        return outputs


def load_backbone(
    name: str | None,
    *,
    weights: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    outputs: Sequence[str] = ("features",),
) -> Backbone:
    """Return timm's backbone `name`, frozen, with the weights asked for.

    `name`: a timm model (``mobilenetv2_100``, ``vit_small_patch16_224.augreg_in1k``) or ``hf-hub:OWNER/MODEL``; None
    takes the one a weights file names, ``featcache_nano`` is the one in this package. `weights`: a local
    ``.safetensors`` file, whose metadata (``timm_model``, ``timm_kwargs``, ``mean``, ``std``, ``preprocessing``, each a
    JSON string) is honoured where no argument differs; ``random:SEED`` for a network that was never trained; None for
    the model hub, or the embedded file of ``featcache_nano``. `mean`, `std`: three numbers each, replacing timm's.
    `outputs`: ``features`` (see the module), ``logits`` of the pretrained classifier, and, in the
    same pass, ``stage1``... (pooled stages of a convolutional network) or ``cls-1``..., ``mean-1``... (class token and
    mean of the patch tokens after the final norm; 1 is the last block) and ``tokens`` (the last block's grid,
    (rows, columns, channels)) of a transformer.

    Raises `BackboneError` for an unknown backbone or output, `WeightsError` for weights that cannot be had or do not
    fit, `InputError` for settings that make no sense.
    """
    outputs = tuple(outputs)
    source = "hub" if weights is None else str(weights)
    kwargs: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    own: Preprocessing | None = None
    told = None if source == "hub" or source.startswith("random:") else Path(source)
    if name == EMBEDDED_BACKBONE:
        name, told = None, told or embedded_weights()
        source = str(told) if source == "hub" else source
        if told == embedded_weights() and not told.is_file():
            raise WeightsError(
                f"{EMBEDDED_BACKBONE!r} must lie in this installation as {str(told)!r}, it does not: "
                "name another backbone"
            )
    if told is not None:
        state, metadata = read_checkpoint(told)
        name = name or metadata.get("timm_model")
        kwargs = metadata.get("timm_kwargs", {})
        mean = metadata.get("mean") if mean is None else mean
        std = metadata.get("std") if std is None else std
        own = _own_preprocessing(metadata.get("preprocessing"), source)
    if name is None:
        raise BackboneError(f"a backbone must be named, got None and no timm_model in the metadata of {source!r}")
    kwargs = _check_kwargs({**kwargs, **(model_kwargs or {})}, keep_classifier="logits" in outputs)
    timm = import_timm()
    if source.startswith("random:"):
        state = None  # of the embedded backbone, the network and its preprocessing only
    if state is not None:
        network = _create(timm, name, kwargs)
        label = Path(source).name
    elif source == "hub":
        network, name = _create_from_hub(timm, name, kwargs)
        label = "hub"
    else:
        network = _create_random(timm, name, kwargs, source)
        label = source
    if "logits" in outputs and not getattr(network, "num_classes", 0):
        raise BackboneError(f"output 'logits' needs a backbone with a classifier, {name!r} has none; leave it out")
    preprocessing = _preprocessing_of(timm, network, name, mean=mean, std=std, side=kwargs.get("img_size"))
    if own is not None:
        preprocessing = dataclasses.replace(own, mean=preprocessing.mean, std=preprocessing.std)
    all_keys = set(network.state_dict())
    if "logits" not in outputs:
        _drop_classifier(network)
    if state is not None:
        fit_state(network, state, optional=all_keys - set(network.state_dict()), source=source, model=name)
    return Backbone(
        network,
        model_name=name,
        model_kwargs=kwargs,
        preprocessing=preprocessing,
        weights_label=label,
        outputs=outputs,
    )


def build_backbone(
    name: str,
    *,
    model_kwargs: Mapping[str, Any],
    preprocessing: Preprocessing,
    outputs: Sequence[str],
    weights_label: str,
    weights_sha256: str,
) -> Backbone:
    """Return timm's network `name` without any weights in particular, for a caller that loads its own into it."""
    network = _create(import_timm(), name, model_kwargs)
    if "logits" not in outputs:
        _drop_classifier(network)
    return Backbone(
        network,
        model_name=name,
        model_kwargs=model_kwargs,
        preprocessing=preprocessing,
        weights_label=weights_label,
        weights_sha256=weights_sha256,
        outputs=outputs,
    )


def create_network(name: str, model_kwargs: Mapping[str, Any]) -> nn.Module:
    """Return timm's network `name` with weights drawn from torch's generator; `BackboneError` where there is none."""
    return _create(import_timm(), name, dict(model_kwargs))


def weights_digest(network: nn.Module) -> str:
    """Return the sha256 (64 hexadecimal digits) over (name, dtype, shape, bytes) of all parameters and buffers.

    They are taken sorted by name, so neither the file format nor the order of definition matters.
    """
    digest = hashlib.sha256()
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def available_outputs(network: nn.Module) -> tuple[str, ...]:
    """Return the names `load_backbone` accepts as outputs of this timm network."""
    names = ["features"]
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    if getattr(network, "num_classes", 0) or config.get("num_classes"):
        names.append("logits")
    if not hasattr(network, "forward_intermediates"):
        return tuple(names)
    if _is_transformer(network):
        depth = range(1, len(_feature_info(network)) + 1)
        if getattr(network, "cls_token", None) is not None:
            names += [f"cls-{block}" for block in depth]
        names += [f"mean-{block}" for block in depth]
        names.append("tokens")
    else:
        names += [f"stage{stage}" for stage in range(1, len(_feature_info(network)) + 1)]
    return tuple(names)


def _is_transformer(network: nn.Module) -> bool:
    """Return whether the intermediates are one token sequence per block (columnar transformers only)."""
    method = getattr(network, "forward_intermediates", None)
    blocks = getattr(network, "blocks", None)
    return (
        method is not None
        and "return_prefix_tokens" in inspect.signature(method).parameters
        and isinstance(blocks, (nn.Sequential, nn.ModuleList))
        and len(_feature_info(network)) == len(blocks)
    )


def _feature_info(network: nn.Module) -> Sequence[Any]:
    info: Any = getattr(network, "feature_info", ())
    return info if isinstance(info, (list, tuple)) else list(info.info)


def _layers_of(network: nn.Module, outputs: tuple[str, ...], model_name: str) -> dict[str, int]:
    """Return ``{output: index for forward_intermediates}``; refuse what this network does not have."""
    if not outputs or len(set(outputs)) != len(outputs):
        raise InputError(f"outputs must be one or more distinct names, got {outputs!r}")
    layers = {}
    there = available_outputs(network)
    for name in outputs:
        if name not in there and name != "logits":
            raise BackboneError(f"output {name!r} is not one of {model_name!r}; it has {', '.join(_shorten(there))}")
        if name == "tokens":
            layers[name] = len(_feature_info(network)) - 1
        elif match := _OUTPUT.fullmatch(name):
            number = int(match[2])
            layers[name] = number - 1 if match[1] == "stage" else len(_feature_info(network)) - number
    return layers


def _shorten(names: Sequence[str]) -> list[str]:
    """Return the names with runs such as cls-1, cls-2, cls-3 written as one range."""
    runs: dict[str, list[str]] = {}
    for name in names:
        match = _OUTPUT.fullmatch(name)
        runs.setdefault(match[1] if match else name, []).append(name)
    return [run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs.values()]


def _check_kwargs(kwargs: dict[str, Any], *, keep_classifier: bool) -> dict[str, Any]:
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


def _create(timm: Any, name: str, kwargs: Mapping[str, Any], **loading: Any) -> nn.Module:
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


def _create_from_hub(timm: Any, name: str, kwargs: Mapping[str, Any]) -> tuple[nn.Module, str]:
    """Return the network with the hub's weights, and its full name with timm's tag."""
    plain = _create(timm, name, kwargs)
    config: dict[str, Any] = plain.pretrained_cfg  # type: ignore[assignment]
    path = hub_weights(name, config)
    # timm's own loader adapts names and shapes where a checkpoint needs it; only the download is ours, so that
    # it fails quickly and never falls back to a pickle.
    network = _create(
        timm, name, kwargs, pretrained=True, pretrained_cfg_overlay={"file": str(path), "source": "", "url": ""}
    )
    tag = config.get("tag")
    full = f"{name}.{tag}" if tag and "." not in name and not name.startswith(_HUB_PREFIX) else name
    return network, full


def _create_random(timm: Any, name: str, kwargs: Mapping[str, Any], source: str) -> nn.Module:
    digits = source.removeprefix("random:")
    if not digits.isdecimal():
        raise WeightsError(f"random weights must be 'random:SEED' with a whole number, got {source!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digits))
        network = _create(timm, name, kwargs)
    for module in network.modules():
        scale = getattr(module, "weight", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
            nn.init.ones_(scale)  # zeroed so that training starts from shortcuts alone; untrained, a branch must count
    return network


def _nearest(timm: Any, name: str) -> list[str]:
    known = timm.list_models()
    close = difflib.get_close_matches(name, [*known, *timm.list_pretrained()], n=4, cutoff=0.5)
    return close or [f"none of {len(known)}; see timm.list_models()"]


def _drop_classifier(network: nn.Module) -> None:
    if getattr(network, "num_classes", 0) and hasattr(network, "reset_classifier"):
        reset: Any = network.reset_classifier
        reset(0)


def _preprocessing_of(
    timm: Any,
    network: nn.Module,
    name: str,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    side: int | Sequence[int] | None,
) -> Preprocessing:
    """Return timm's evaluation transform of this model, with `mean`, `std` and the input's `side` replaced if given."""
    wanted = {}
    if side is not None:
        wanted["input_size"] = (3, side, side) if isinstance(side, int) else (3, *side)
    config = timm.data.resolve_model_data_config(network, args=wanted)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise BackboneError(f"a backbone must take 3 channels (RGB), {name!r} takes {channels!r}")
    crop_pct = config["crop_pct"]
    mode = config["crop_mode"]
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


def _own_preprocessing(values: Any, source: str) -> Preprocessing | None:
    """Return the preprocessing a weights file brings along; None where it brings none."""
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
