"""Weights in half precision: numbers that sixteen bits hold exactly, computed with in float32."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from featcache.errors import InputError
from featcache.heads import Head, LinearHead
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel, changed_recipe

_LEAST_AXES = 2  # biases and norms have one: they take few bytes and are what sums start from


def in_halves(model: MergedModel, *, head: bool = True) -> MergedModel:
    """Return a copy of a float `model` whose weights of two axes or more are the nearest float16 numbers.

    Norms must be folded: a writer that folds them would make other numbers of these. With `head` a linear head's too;
    other heads stay as they are. Raises `InputError` for a weight beyond float16.
    """
    rounded = model.copy(halves=True, quantization=None)
    for name, parameter in rounded.backbone.named_parameters():
        if goes_in_half(parameter):
            halved = parameter.detach().half()
            if not bool(torch.isfinite(halved).all()):
                raise InputError(
                    f"weights must be at most {np.finfo(np.float16).max:.0f} to fit half precision, {name!r} has "
                    f"{float(parameter.abs().max()):.3g}: take --precision int8, which scales them"
                )
            parameter.copy_(halved.float())
    recipe = changed_recipe(rounded)
    kind = model_kind(recipe.input)
    return kind.merged(
        kind.wrap(rounded.backbone.network, recipe, outputs=model.backbone.outputs, assets=model.assets),
        _half_head(model.fitted_head) if head else model.fitted_head, recipe=recipe, surgery=model.surgery, halves=True,
        lineage=model.lineage,
    )  # fmt: skip


def goes_in_half(tensor: torch.Tensor) -> bool:
    """Return whether `tensor` is of those that a model in half precision stores so."""
    return tensor.ndim >= _LEAST_AXES and tensor.dtype in (torch.float32, torch.float16)


def _half_head(head: Head) -> Head:
    if not isinstance(head, LinearHead):
        return head
    weight = head.weight.astype(np.float16)
    if not np.isfinite(weight).all():
        raise InputError(
            "the head's weights must fit half precision, they do not: train it with a larger --l2, or take "
            "--head-precision float"
        )
    return dataclasses.replace(head, weight=weight.astype(np.float32))
