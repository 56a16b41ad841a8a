"""`merge`: put the head back on the backbone its features came from; the result is a MODEL."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featcache.cache import FeatureCache, borrow_cache
from featcache.errors import InputError, VerificationError, WeightsError
from featcache.extract.inputs.registry import find_input
from featcache.extract.request import Request
from featcache.heads import Head, LinearHead, load_head
from featcache.heads.agreement import SAME_ARITHMETIC, logit_tolerance
from featcache.model.directory import model_bytes, save_model
from featcache.model.golden import GoldenKind
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel
from featcache.model.reference import make_golden
from featcache.system.files import refuse_existing
from featcache.system.sources.batches import prepared_batches

_COMPARED_IMAGES = 32
_MADE_UP = 4
_SUM_ERROR = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge made: `model`, its `parameters` and `bytes` (golden images left out).

    `max_abs_diff`: largest difference of logits to head(backbone(x)) run separately. `max_abs_diff_cached`: to the
    head's logits on the cached rows of the same images, which were stored in another precision; None where no image
    could be read. `cached_agreement`: share of those images with the same first class.
    """

    model: str
    parameters: int
    bytes: int
    max_abs_diff: float
    max_abs_diff_cached: float | None
    cached_agreement: float | None
    n_compared: int
    weights: str
    random_weights: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


def merge(
    head: Head | str | os.PathLike[str],
    cache: FeatureCache | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    dataset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    golden: GoldenKind = "photos",
    overwrite: bool = False,
) -> MergeResult:
    """Write the MODEL at `out` made of `head` and the backbone of `cache`; return what was made and how it compares.

    The backbone is loaded again as the cache's Recipe says, and must have the very weights the rows were computed with.

    Parameters
    ----------
    head
        A Head or its directory.
    cache
        The cache it was trained on, open or as its directory.
    out
        The directory to make.
    dataset
        Whose photos become golden samples, where the cache holds several data sets.
    images
        Where the images of the cache lie by now, if no longer where they were built from.
    golden
        ``photos`` puts 16 images of the data set into the model with their logits, ``synthetic`` random colours,
        ``none`` nothing.
    overwrite
        Whether `out` may exist and be replaced.

    Returns
    -------
    MergeResult
        Sizes, and the largest differences to the halves run separately.

    Raises
    ------
    InputError
        Where the head was trained on another cache.
    WeightsError
        Where the backbone's weights are others now.
    VerificationError
        Where the merged module does not compute what its halves do.
    ExistsError
        Where `out` exists and may not be replaced.

    Examples
    --------
    >>> from featcache import merge
    >>> result = merge("head", "cache", out="merged", golden="synthetic")
    >>> result.max_abs_diff < 1e-3, result.random_weights
    (True, False)
    """
    refuse_existing(Path(out), overwrite=overwrite)
    fitted = head if isinstance(head, Head) else load_head(head)
    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        model = merged_model(fitted, opened, dataset=dataset)
        difference = _difference_to_halves(model)
        cached, agreement, compared = _difference_to_cache(model, opened, dataset)
        made = None if golden == "none" else make_golden(model, golden, cache=opened, dataset=dataset)
        path = save_model(model, out, golden=made, overwrite=overwrite)
        return MergeResult(
            str(path), model.parameter_count(), model_bytes(path), difference, cached, agreement, compared,
            opened.recipe.weights, opened.recipe.random_weights,
        )  # fmt: skip


def merged_model(head: Head, cache: FeatureCache, *, dataset: str | None = None) -> MergedModel:
    """Return `head` on the backbone of `cache` as one module; raises as `merge`."""
    recipe = cache.recipe
    if head.fingerprint is not None and head.fingerprint != cache.fingerprint:
        raise InputError(
            f"the head must have been trained on the cache {str(cache.path)!r} ({cache.fingerprint[:12]}), it comes "
            f"from a cache with the fingerprint {head.fingerprint[:12]}: name that cache, or train again"
        )
    if recipe.model_digest is not None:
        raise InputError(
            f"the cache {str(cache.path)!r} must be of a backbone of its own to merge; its rows come from a MODEL"
        )
    outputs = tuple(dict.fromkeys(column.partition("@")[0] for column in head.columns))
    backbone = reload_backbone(cache, outputs=outputs)
    step = {
        "verb": "merge",
        "cache": cache.fingerprint,
        "dataset": dataset or (cache.datasets[0] if len(cache.datasets) == 1 else None),
        "head": {"kind": head.kind, "settings": dict(head.settings)},
        "weights": recipe.weights,
    }
    return model_kind(recipe.input).merged(backbone, head, recipe=recipe, lineage=[step])


def reload_backbone(cache: FeatureCache, *, outputs: tuple[str, ...]) -> Any:
    """Return the backbone that computed the rows of `cache`, loaded again; `WeightsError` where it is another now."""
    recipe = cache.recipe
    backbone = find_input(recipe.input).load_backbone(Request.from_json(cache.request), outputs=outputs)
    if backbone.weights_sha256 != recipe.weights_sha256:
        raise WeightsError(
            f"the weights of {recipe.model!r} must be those the cache {str(cache.path)!r} was built with "
            f"({recipe.weights!r}, sha256 {recipe.weights_sha256[:12]}), got {backbone.weights_sha256[:12]}: "
            "put the old file back, or build the cache again"
        )
    if (backbone.model_name, backbone.preprocessing) != (recipe.model, recipe.preprocessing):
        raise WeightsError(
            f"the backbone must be {recipe.model!r} with {recipe.preprocessing!r} as in the cache {str(cache.path)!r}, "
            f"got {backbone.model_name!r} with {backbone.preprocessing!r}: install the package that it was built with"
        )
    return backbone


def _difference_to_halves(model: MergedModel) -> float:
    """Return the largest difference of logits between the module and the head on the features it says it has."""
    batch = torch.from_numpy(model.input.stack(_made_up(model)))
    with torch.inference_mode():
        features = model.halves_apart(batch)
        merged = model(batch)[0].numpy()
    separate = model.fitted_head.predict_logits(features)
    difference = float(np.abs(merged - separate).max())
    limit = logit_tolerance(separate, SAME_ARITHMETIC) + _rounding(model.fitted_head, features)
    if not difference <= limit:
        raise VerificationError(
            f"the merged model must give the logits of head(backbone(x)) within {limit:.2g}, got a difference of "
            f"{difference:.2g}: this is a fault of featcache, please report it with the backbone's name"
        )
    return difference


def _rounding(head: Head, features: npt.NDArray[np.float32]) -> float:
    """Return by how much two orders of summing may differ: a share of the terms, which large weights make large."""
    if not isinstance(head, LinearHead):
        return 0.0
    return float(_SUM_ERROR * (np.abs(features) @ np.abs(head.weight).T).max())


def _made_up(model: MergedModel) -> list[npt.NDArray[Any]]:
    deployed = model.input
    return [deployed.prepare(data) for data in deployed.synthetic(_MADE_UP)]


def _difference_to_cache(
    model: MergedModel, cache: FeatureCache, dataset: str | None
) -> tuple[float | None, float | None, int]:
    """Return (largest difference, share of equal first classes, images) against the head on cached rows."""
    if dataset is None and len(cache.datasets) != 1:
        return None, None, 0
    samples = cache.samples(dataset)
    selection = cache.select(dataset=dataset, labelled=False)
    step = max(1, len(selection.rows) // _COMPARED_IMAGES)
    compared = slice(None, step * _COMPARED_IMAGES, step)
    sources = samples.sources(selection.indices[compared])
    # photos may have gone or changed since the build; what is left is compared
    deployed = model.input
    prepare = partial(deployed.prepare, decoder=cache.recipe.decoder)
    batches = list(prepared_batches(sources, prepare, deployed.stack, failures={}, batch_size=_COMPARED_IMAGES))
    if not batches:
        return None, None, 0
    (batch,) = batches
    rows = selection.rows[compared][batch.indices]
    stored = model.fitted_head.predict_logits(cache.gather(rows, output=list(model.backbone.outputs)))
    with torch.inference_mode():
        live = model(torch.from_numpy(batch.values))[0].numpy()
    agreement = float((stored.argmax(axis=1) == live.argmax(axis=1)).mean())
    return float(np.abs(stored - live).max()), agreement, len(batch.indices)
