"""Small real models for the tests of export, runtime and report: a timm test network with random weights and a head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.backbone import load_backbone
from featcache.golden import Golden, golden_patterns
from featcache.heads.linear import LinearHead
from featcache.merge import logits_of_images
from featcache.model import MergedModel, save_model
from featcache.recipe import Recipe


def small_model(
    *,
    classes: tuple[str, ...] = ("cat", "dog"),
    name: str = "test_efficientnet",
    gain: float = 0.5,
    **model_kwargs: object,
) -> MergedModel:
    """Return a merged model on `name` with random weights, the same every time."""
    backbone = load_backbone(name, weights="random:0", model_kwargs=model_kwargs)
    recipe = Recipe(
        model=backbone.model_name,
        model_kwargs=dict(backbone.model_kwargs),
        model_digest=None,
        weights_sha256=backbone.weights_sha256,
        outputs=("features",),
        preprocessing=backbone.preprocessing,
        decoder="pillow",
        dct_scaling=False,
        orientation="exif",
        views=1,
        view_seed=0,
        engine="torch",
        engine_version="2",
        precision="fp32",
        dtype="float32",
        weights="random:0",
    )
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((len(classes), backbone.num_features)) * gain).astype(np.float32)
    head = LinearHead(classes=classes, weight=weight, bias=np.zeros(len(classes), dtype=np.float32))
    return MergedModel(backbone, head, recipe=recipe, lineage=[{"verb": "merge", "weights": "random:0"}])


def saved_model(path: Path, *, golden: bool = True, model: MergedModel | None = None) -> Path:
    """Write a small model at `path`, with golden samples of random colours."""
    made = model or small_model()
    samples = None
    if golden:
        images = golden_patterns(made.preprocessing.height, made.preprocessing.width)
        samples = Golden("synthetic", "torch fp32", images, logits_of_images(made, images))
    return save_model(made, path, golden=samples)
