"""Load a frozen timm backbone: by name from a hub, from a file of weights, or the embedded one.

**The feature** is the input of timm's final classifier: ``forward_head(forward_features(x), pre_logits=True)``. For
MobileNetV3 that is the vector after ``conv_head`` (1024 or 1280 wide), not ``num_features`` (576 or 960); for a vision
transformer it is the pooled token after ``fc_norm``. A linear head on it is exactly what timm's own classifier is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from featcache.backbone.backbone import Backbone
from featcache.backbone.checkpoint import fit_state, read_checkpoint
from featcache.backbone.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.backbone.networks import (
    check_kwargs,
    create_from_hub,
    create_network,
    create_random,
    drop_classifier,
    preprocessing_of,
    preprocessing_of_file,
)
from featcache.errors import BackboneError, WeightsError
from featcache.recipe import Preprocessing


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

    Parameters
    ----------
    name : str or None
        A timm model (``mobilenetv2_100``, ``vit_small_patch16_224.augreg_in1k``), ``hf-hub:OWNER/MODEL``, or
        ``featcache_nano``, the one in this package; None takes the one a weights file names.
    weights : path or str, optional
        A local ``.safetensors`` file, whose metadata (``timm_model``, ``timm_kwargs``, ``mean``, ``std``,
        ``preprocessing``, each a JSON string) is honoured where no argument differs; ``random:SEED`` for a network that
        was never trained; None for the model hub, or the embedded file of ``featcache_nano``.
    model_kwargs : mapping, optional
        For ``timm.create_model``, JSON values.
    mean, std : three numbers each, optional
        Per channel, replacing timm's.
    outputs : sequence of str
        ``features`` (see the module), ``logits`` of the pretrained classifier, and, in the same pass, ``stage1``...
        (pooled stages of a convolutional network) or ``cls-1``..., ``mean-1``... (class token and mean of the patch
        tokens after the final norm; 1 is the last block) and ``tokens`` (the last block's grid, (rows, columns,
        channels)) of a transformer.

    Returns
    -------
    Backbone
        In eval mode, no gradient.

    Raises
    ------
    BackboneError
        For an unknown backbone or output.
    WeightsError
        For weights that cannot be had or do not fit.
    InputError
        For settings that make no sense.

    Examples
    --------
    >>> from featcache import load_backbone
    >>> backbone = load_backbone("featcache_nano", outputs=("features", "stage2"))
    >>> backbone.num_features, backbone.preprocessing.height
    (1280, 128)
    >>> [len(shape) for shape in backbone.output_shapes]
    [1, 1]
    """
    outputs = tuple(outputs)
    source = "hub" if weights is None else str(weights)
    kwargs: dict[str, Any] = {}
    state: dict[str, Tensor] | None = None
    file_preprocessing: Preprocessing | None = None
    weights_file = None if source == "hub" or source.startswith("random:") else Path(source)
    if name == EMBEDDED_BACKBONE:
        name, weights_file = None, weights_file or embedded_weights()
        source = str(weights_file) if source == "hub" else source
        if weights_file == embedded_weights() and not weights_file.is_file():
            raise WeightsError(
                f"{EMBEDDED_BACKBONE!r} must lie in this installation as {str(weights_file)!r}, it does not: "
                "name another backbone"
            )
    if weights_file is not None:
        state, metadata = read_checkpoint(weights_file)
        name = name or metadata.get("timm_model")
        kwargs = metadata.get("timm_kwargs", {})
        mean = metadata.get("mean") if mean is None else mean
        std = metadata.get("std") if std is None else std
        file_preprocessing = preprocessing_of_file(metadata.get("preprocessing"), source)
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
    if file_preprocessing is not None:
        preprocessing = dataclasses.replace(file_preprocessing, mean=preprocessing.mean, std=preprocessing.std)
    all_keys = set(network.state_dict())
    if "logits" not in outputs:
        drop_classifier(network)
    if state is not None:
        fit_state(network, state, optional=all_keys - set(network.state_dict()), source=source, model=name)
    backbone = Backbone(
        network,
        model_name=name,
        model_kwargs=kwargs,
        preprocessing=preprocessing,
        weights_label=label,
        outputs=outputs,
    )
    if "img_size" in kwargs:
        _ = backbone.output_shapes  # a size that the network does not take is said now, not in the midst of a build
    return backbone


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
