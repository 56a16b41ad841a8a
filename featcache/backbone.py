"""Load a frozen timm backbone: its network, its preprocessing and the digest of its weights.

**The feature** is the input of timm's final classifier: ``forward_head(forward_features(x), pre_logits=True)``. For
MobileNetV3 that is the vector after ``conv_head`` (1024 or 1280 wide), not ``num_features`` (576 or 960); for a vision
transformer it is the pooled token after ``fc_norm``. A linear head on it is exactly what timm's own classifier is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbone_outputs import is_transformer, layers_of
from featcache.checkpoint import fit_state, read_checkpoint
from featcache.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.errors import BackboneError, WeightsError
from featcache.recipe import Preprocessing
from featcache.timm_network import (
    check_kwargs,
    create_from_hub,
    create_network,
    create_random,
    drop_classifier,
    own_preprocessing,
    preprocessing_of,
)


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
        self._layers = layers_of(network, self.outputs, model_name)
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
        if is_transformer(network):
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
        own = own_preprocessing(metadata.get("preprocessing"), source)
    if name is None:
        raise BackboneError(f"a backbone must be named, got None and no timm_model in the metadata of {source!r}")
    kwargs = check_kwargs({**kwargs, **(model_kwargs or {})}, keep_classifier="logits" in outputs)
    if source.startswith("random:"):
        state = None  # of the embedded backbone, the network and its preprocessing only
    if state is not None:
        network = create_network(name, kwargs)
        label = Path(source).name
    elif source == "hub":
        network, name = create_from_hub(name, kwargs)
        label = "hub"
    else:
        network = create_random(name, kwargs, source)
        label = source
    if "logits" in outputs and not getattr(network, "num_classes", 0):
        raise BackboneError(f"output 'logits' needs a backbone with a classifier, {name!r} has none; leave it out")
    preprocessing = preprocessing_of(network, name, mean=mean, std=std, side=kwargs.get("img_size"))
    if own is not None:
        preprocessing = dataclasses.replace(own, mean=preprocessing.mean, std=preprocessing.std)
    all_keys = set(network.state_dict())
    if "logits" not in outputs:
        drop_classifier(network)
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
    network = create_network(name, model_kwargs)
    if "logits" not in outputs:
        drop_classifier(network)
    return Backbone(
        network,
        model_name=name,
        model_kwargs=model_kwargs,
        preprocessing=preprocessing,
        weights_label=weights_label,
        weights_sha256=weights_sha256,
        outputs=outputs,
    )


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
