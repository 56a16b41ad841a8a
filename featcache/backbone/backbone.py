"""`Backbone`: a frozen network with named outputs, its preprocessing and the digest of its weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.backbone.outputs import is_transformer, layers_of
from featcache.errors import BackboneError
from featcache.recipe import Preprocessing


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
        """Return the shape of one row of each output, e.g. ``((1280,),)``, by running the network as it is now.

        Raises `BackboneError` where the network does not take its own input, or an output other than ``tokens`` is no
        vector.
        """
        parameter = next(self.network.parameters(), torch.zeros(()))
        image = parameter.new_zeros(1, 3, self.preprocessing.height, self.preprocessing.width)
        try:
            with torch.inference_mode():
                shapes = tuple(tuple(value.shape[1:]) for value in self(image))
        except (AssertionError, RuntimeError, ValueError) as error:
            height, width = image.shape[2:]
            raise BackboneError(
                f"{self.model_name!r} must take images of {height}x{width} pixels, it says: "
                f"{(str(error).splitlines() or [repr(error)])[0]}; choose another img_size in model_kwargs"
            ) from error
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
