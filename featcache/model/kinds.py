"""What a MODEL is of each input kind: its class, how its network is described in ``model.json`` and built again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import nn

from featcache.backbone.backbone import Backbone
from featcache.backbone.networks import check_kwargs, create_network
from featcache.errors import CorruptError, InputError
from featcache.heads import Head
from featcache.model.folding import folded_copy
from featcache.model.merged import MergedModel, wrap_network
from featcache.model.surgery import Surgery
from featcache.recipe import Recipe, TextPreprocessing
from featcache.system.json import parse_json


class ModelKind(ABC):
    """The MODELs of one input kind.

    `asset_names`: files that one holds beside its weights. `can_be_pruned`: whether channels, attention heads and the
    like can be cut out, `can_be_trained`: whether the network can be, toward features that it gave. `integers`: the
    precision of `featcache.quantize` that makes most of it.
    """

    asset_names: tuple[str, ...] = ()
    can_be_pruned = can_be_trained = True
    integers: Literal["int8", "int8-dynamic"] = "int8"

    @abstractmethod
    def merged(self, backbone: nn.Module, head: Head, *, recipe: Recipe, **settings: Any) -> MergedModel:
        """Return the module; `settings` as of `MergedModel`."""

    @abstractmethod
    def architecture(self, model: MergedModel) -> dict[str, Any]:
        """Return what ``model.json`` says of the network, JSON values."""

    @abstractmethod
    def build_network(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network with values to be loaded; the document may come from a stranger.

        Raises `CorruptError` for what would fetch anything or run code that is not the library's own.
        """

    @abstractmethod
    def wrap(self, network: nn.Module, recipe: Recipe, *, outputs: tuple[str, ...], assets: Mapping[str, bytes]) -> Any:
        """Return `network`, whatever was done to it, as the backbone of which `recipe` tells the rest."""

    def folded(self, model: MergedModel) -> MergedModel:
        """Return a copy of a float `model` whose norms are folded into the layers before, as far as it has such."""
        return model.copy()


class ImageModels(ModelKind):
    """timm's networks."""

    def merged(self, backbone: nn.Module, head: Head, *, recipe: Recipe, **settings: Any) -> MergedModel:
        """Return a `MergedModel`."""
        return MergedModel(cast("Backbone", backbone), head, recipe=recipe, **settings)

    def architecture(self, model: MergedModel) -> dict[str, Any]:
        """Return timm's name and arguments."""
        return {"timm": _timm_name(model), "model_kwargs": dict(model.recipe.model_kwargs)}

    def build_network(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Return timm's network by name, as `load_backbone` makes it.

        Only timm's own names and arguments of the network itself are taken, none that would fetch a network from a hub
        or open a checkpoint: `CorruptError` for others.
        """
        name = architecture["timm"]
        if ":" in name:
            raise CorruptError(
                f"architecture.timm in model.json must be a name of timm's, got {name!r}: merge it again"
            )
        network = create_network(name, check_kwargs(dict(architecture["model_kwargs"]), keep_classifier=True))
        if "logits" not in architecture["outputs"] and getattr(network, "num_classes", None):
            reset: Any = network.reset_classifier
            reset(0)
        return network.requires_grad_(False).eval()

    def wrap(self, network: nn.Module, recipe: Recipe, *, outputs: tuple[str, ...], assets: Mapping[str, bytes]) -> Any:
        """Return a `Backbone`."""
        return wrap_network(network, recipe, outputs=outputs)

    def folded(self, model: MergedModel) -> MergedModel:
        """Return the model with its batch norms folded into convolutions."""
        size = model.preprocessing
        network, folded = folded_copy(model.backbone.network, height=size.height, width=size.width)
        surgery = Surgery({**model.surgery.folded, **folded}, model.surgery.widths)
        backbone = wrap_network(network, model.recipe, outputs=model.backbone.outputs)
        return MergedModel(backbone, model.fitted_head, recipe=model.recipe, surgery=surgery, lineage=model.lineage)


class TextModels(ModelKind):
    """Encoders of transformers' own classes."""

    asset_names = ("tokenizer.json",)
    can_be_pruned = can_be_trained = False
    integers = "int8-dynamic"

    def merged(self, backbone: nn.Module, head: Head, *, recipe: Recipe, **settings: Any) -> MergedModel:
        """Return a `MergedTextModel`."""
        from featcache.model.text import MergedTextModel

        return MergedTextModel(cast("Backbone", backbone), head, recipe=recipe, **settings)

    def architecture(self, model: MergedModel) -> dict[str, Any]:
        """Return the values of transformers' configuration."""
        config: Any = model.backbone.network.config
        return {"transformers": parse_json(config.to_json_string(use_diff=False))}

    def build_network(self, architecture: Mapping[str, Any]) -> nn.Module:
        """Return the network that transformers builds of the configuration: no code but its own."""
        from featcache.backbone.text.load import network_of_config

        return network_of_config(architecture["transformers"])

    def wrap(self, network: nn.Module, recipe: Recipe, *, outputs: tuple[str, ...], assets: Mapping[str, bytes]) -> Any:
        """Return a `TextBackbone`."""
        from featcache.backbone.text.encoder import TextBackbone

        return TextBackbone(
            network,
            model_name=recipe.model,
            tokenizer=assets["tokenizer.json"],
            preprocessing=cast("TextPreprocessing", recipe.preprocessing),
            weights_label=recipe.weights,
            outputs=outputs,
        )


def model_kind(input: str) -> ModelKind:
    """Return the MODELs of an input kind; `InputError` where there are none."""
    if input not in _KINDS:
        raise InputError(
            f"models must be of the input kinds {sorted(_KINDS)!r}, got {input!r}: train heads on its cache"
        )
    return _KINDS[input]


def _timm_name(model: MergedModel) -> str:
    """Return the name under which timm builds the network without asking a hub."""
    name = model.recipe.model
    if not name.startswith("hf-hub:"):
        return name
    config: Any = getattr(model.backbone.network, "pretrained_cfg", {})
    return str(config["architecture"])


_KINDS: dict[str, ModelKind] = {"image": ImageModels(), "text": TextModels()}
