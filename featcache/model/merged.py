"""`MergedModel`: normalisation, backbone and head as one module, with its labels inside; of images, or of texts."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from featcache.backbone.backbone import Backbone
from featcache.errors import InputError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.registry import find_input
from featcache.heads import Head
from featcache.model.quantization import Quantization
from featcache.model.surgery import Surgery
from featcache.model.widths import changed_widths, layer_widths
from featcache.recipe import Preprocessing, Recipe
from featcache.system.json import canonical_json


class MergedModel(nn.Module):
    """Image in, class probabilities out: normalisation, backbone and head in one module, in eval mode.

    `head` is the torch module made of `fitted_head`, the Head's values: features → logits.

    Parameters
    ----------
    backbone
        Normalised float (N, 3, H, W) → a tuple of outputs.
    fitted_head
        The trained head.
    recipe
        That of the features `fitted_head` was trained on; its ``model_digest`` is set where the backbone is no longer
        timm's own.
    surgery
        What was done to the network's layout since timm built it.
    quantization
        What ``quant.json`` holds, None for a float model.
    halves
        Whether weights are stored in half precision: all of two axes or more are such numbers, held in float32.
    lineage
        One entry per verb, from merge on.

    Examples
    --------
    >>> from featcache.model.directory import load_model
    >>> model = load_model("model")
    >>> isinstance(model, MergedModel)
    True
    >>> size = model.preprocessing
    >>> logits, probabilities = model(torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8))
    >>> model.classes, probabilities.shape
    (('cat', 'dog'), torch.Size([1, 2]))
    """

    pixel_mean: torch.Tensor
    pixel_gain: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        fitted_head: Head,
        *,
        recipe: Recipe,
        surgery: Surgery | None = None,
        quantization: Quantization | None = None,
        halves: bool = False,
        lineage: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fitted_head = fitted_head
        self.head = fitted_head.to_module()
        self.recipe = recipe
        self.surgery = surgery or Surgery()
        self.quantization = quantization
        self.halves = halves
        self.lineage = tuple(dict(step) for step in lineage)
        self._register_normalisation()
        self.requires_grad_(False)
        self.eval()

    def _register_normalisation(self) -> None:
        preprocessing = self.recipe.image_preprocessing
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean) * 255.0, persistent=False)
        self.register_buffer("pixel_gain", 1.0 / (torch.tensor(preprocessing.std) * 255.0), persistent=False)

    @cached_property
    def input(self) -> DeployedInput:
        """What stands before the model: how bytes become its input."""
        assets = self.assets
        return find_input(self.recipe.input).deployed(self.recipe.preprocessing, lambda name: assets[name])

    @property
    def assets(self) -> Mapping[str, bytes]:
        """Files that `input` needs beside the weights, by name."""
        return {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.fitted_head.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes this model's input."""
        return self.recipe.image_preprocessing

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Return the backbone's input (N, 3, H, W) float32 of `image` (N, H, W, 3) uint8 RGB."""
        pixels = (image.to(torch.float32) - self.pixel_mean) * self.pixel_gain
        return pixels.permute(0, 3, 1, 2)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, (N, num_features) float32, of `image` (N, H, W, 3) uint8."""
        outputs = self._outputs(image)
        flat = [output.flatten(1) for output in outputs]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def example(self, count: int) -> torch.Tensor:
        """Return `count` made-up inputs to trace the module with."""
        return torch.zeros((count, self.preprocessing.height, self.preprocessing.width, 3), dtype=torch.uint8)

    def _outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self.backbone(self.normalise(image))
        return outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, probabilities), each (N, n_classes) float32, of `image` (N, H, W, 3) uint8 RGB.

        `image` is already resized and cropped. Probabilities are the softmax of the logits, for multi-label a sigmoid
        of each; for regression there are none and the logits, which are the values, stand in both places.
        """
        logits = self.head(self.features(image))
        if self.fitted_head.task == "classification":
            return logits, torch.softmax(logits, dim=-1)
        return logits, torch.sigmoid(logits) if self.fitted_head.task == "multilabel" else logits

    def halves_apart(self, image: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return `features`, as the backbone gives them of its library's own form of the input."""
        size = self.preprocessing
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (size.mean, size.std))
        outputs = self.backbone((image.permute(0, 3, 1, 2).float() / 255.0 - mean) / std)
        return np.concatenate([output.flatten(1).numpy() for output in outputs], axis=1)

    def with_head(self, fitted_head: Head) -> MergedModel:
        """Return a model of this backbone (shared) with another head."""
        return type(self)(
            self.backbone, fitted_head, recipe=self.recipe, surgery=self.surgery, quantization=self.quantization,
            halves=self.halves, lineage=self.lineage,
        )  # fmt: skip

    def copy(self, **changes: Any) -> MergedModel:
        """Return a deep copy that shares no tensor; `changes` replace constructor arguments."""
        values = {
            "recipe": self.recipe, "surgery": self.surgery, "quantization": self.quantization,
            "halves": self.halves, "lineage": self.lineage,
        }  # fmt: skip
        return type(self)(copy.deepcopy(self.backbone), self.fitted_head, **{**values, **changes})

    def digest(self) -> str:
        """Return the sha256 of the backbone as it is now: timm name, surgery, scales, every parameter and buffer."""
        state = hashlib.sha256()
        described = {
            "model": self.recipe.model, "model_kwargs": dict(self.recipe.model_kwargs),
            "surgery": self.surgery.to_json(),
            "quantization": None if self.quantization is None else self.quantization.to_json(),
        }  # fmt: skip
        state.update(canonical_json(described).encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            state.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()

    def parameter_count(self) -> int:
        """Return the number of parameters, backbone and head."""
        return sum(parameter.numel() for parameter in self.parameters())


def wrap_network(network: nn.Module, recipe: Recipe, *, outputs: Sequence[str]) -> Backbone:
    """Return `network`, whatever was done to it, as the Backbone of which `recipe` tells the rest."""
    return Backbone(
        network,
        model_name=recipe.model,
        model_kwargs=recipe.model_kwargs,
        preprocessing=recipe.image_preprocessing,
        weights_label=recipe.weights,
        outputs=outputs,
        weights_sha256=recipe.weights_sha256,
        model_digest=recipe.model_digest,
    )


def changed_recipe(model: MergedModel, **changes: Any) -> Recipe:
    """Return the Recipe of rows computed with `model`'s backbone as it is now: its own digest, and `changes`."""
    return dataclasses.replace(model.recipe, model_digest=model.digest(), **changes)


def with_network(model: MergedModel, network: nn.Module) -> MergedModel:
    """Return `model` with this changed network (not copied) and the Recipe that names it by its digest; same head."""
    widths = changed_widths(network, layer_widths(model.backbone.network))
    surgery = Surgery(model.surgery.folded, {**model.surgery.widths, **widths})
    made = MergedModel(
        wrap_network(network, model.recipe, outputs=model.backbone.outputs), model.fitted_head, recipe=model.recipe,
        surgery=surgery, lineage=model.lineage,
    )  # fmt: skip
    recipe = changed_recipe(made)
    backbone = wrap_network(network, recipe, outputs=model.backbone.outputs)
    return MergedModel(backbone, model.fitted_head, recipe=recipe, surgery=surgery, lineage=model.lineage)


def check_same_classes(model: MergedModel, classes: Sequence[str], what: str) -> None:
    """Raise `InputError` where `classes` are not the model's."""
    if tuple(classes) != model.classes:
        raise InputError(
            f"{what} must have the model's {len(model.classes)} classes {list(model.classes)!r}, got {list(classes)!r}"
        )
