"""Load a frozen text encoder from a directory or a hub: safetensors and JSON only, transformers' own classes only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featcache.backbone.text.directory import EncoderDirectory, open_encoder_directory, require_weights
from featcache.backbone.text.encoder import TextBackbone
from featcache.backbone.text.tokenizer import tokenizer_digest
from featcache.backbone.timm_import import import_transformers
from featcache.errors import BackboneError, WeightsError
from featcache.recipe import Pooling, TextPreprocessing

_DEFAULT_MAX_LENGTH = 512
_SHOWN = 4


def load_text_backbone(
    name: str | Path,
    *,
    weights: str | None = None,
    max_length: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    prefix: str | None = None,
    outputs: Sequence[str] = ("features",),
) -> TextBackbone:
    """Return the text encoder `name`, frozen.

    Parameters
    ----------
    name : str or path
        A directory with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, such as transformers or
        sentence-transformers save; or a hub's ``OWNER/MODEL[@REVISION]``.
    weights : str, optional
        ``random:SEED`` for a network that was never trained; by default those of the directory.
    max_length, pooling, normalize, prefix : optional
        See `featcache.recipe.TextPreprocessing`; by default what ``sentence_bert_config.json``, ``1_Pooling``,
        ``modules.json`` and ``config_sentence_transformers.json`` say, else 512 tokens or what the network takes, the
        mean, not normalised, no prefix. Heads standardise their features: they learn from either.
    outputs : sequence of str
        ``features``, ``mean-1``…, ``cls-1``…; see `TextBackbone`.

    Returns
    -------
    TextBackbone
        In eval mode, no gradient.

    Raises
    ------
    BackboneError
        For what is no text encoder that transformers has itself (no code of a repository is run), or an unknown output.
    WeightsError
        For weights that are no safetensors, cannot be had or do not fit.
    MissingError
        Where `name` is no directory and no hub's id, or lacks ``config.json``.
    FormatError
        For damaged files.
    InputError
        For settings that make no sense.
    DependencyError
        Without transformers.
    """
    directory = open_encoder_directory(str(name))
    network, label = _random_network(directory, weights) if weights is not None else _trained_network(directory)
    limit = directory.max_length or _DEFAULT_MAX_LENGTH
    preprocessing = TextPreprocessing(
        tokenizer_sha256=tokenizer_digest(directory.tokenizer),
        max_length=limit if max_length is None else max_length,
        truncation_side="left" if directory.truncation_side == "left" else "right",
        prefix=directory.prefix if prefix is None else prefix,
        lowercase=directory.lowercase,
        pooling=directory.pooling if pooling is None else pooling,
        normalize=directory.normalize if normalize is None else normalize,
    )
    backbone = TextBackbone(
        network,
        model_name=_model_name(directory),
        tokenizer=directory.tokenizer,
        preprocessing=preprocessing,
        weights_label=label,
        outputs=outputs,
    )
    _ = backbone.output_shapes  # one that does not run says so now, not in the midst of a build
    return backbone


def _model_name(directory: EncoderDirectory) -> str:
    """Return a hub's id, or the name of a local directory: where it lies is no part of what it is."""
    path = Path(directory.name)
    return path.resolve().name if path.is_dir() else directory.name


def _configuration(directory: EncoderDirectory) -> Any:
    transformers = import_transformers()
    try:
        with _quiet(transformers):
            return transformers.AutoConfig.from_pretrained(
                str(directory.folder), trust_remote_code=False, local_files_only=True
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BackboneError(
            f"a text encoder must be of a kind that transformers {transformers.__version__} has (no code of a "
            f"repository is run), {directory.name!r} is of {directory.config.get('model_type')!r}: {_first_line(error)}"
        ) from error


def _trained_network(directory: EncoderDirectory) -> tuple[nn.Module, str]:
    require_weights(directory)
    from safetensors import SafetensorError

    transformers = import_transformers()
    config = _configuration(directory)
    try:
        with _quiet(transformers):
            network, info = transformers.AutoModel.from_pretrained(
                str(directory.folder),
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of {directory.name!r} must be safetensors that fit its config.json: {_first_line(error)}"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    shapes = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info.get("mismatched_keys", ()))
    for what, keys in (("are missing", missing), ("have another shape", shapes)):
        if keys:
            raise WeightsError(
                f"the weights of {directory.name!r} must be those of its network, {len(keys)} {what}: "
                f"{', '.join(keys[:_SHOWN])}{', …' * (len(keys) > _SHOWN)}"
            )
    return network, "model.safetensors" if Path(directory.name).is_dir() else "hub"


def _random_network(directory: EncoderDirectory, source: str) -> tuple[nn.Module, str]:
    digits = source.removeprefix("random:")
    if not source.startswith("random:") or not digits.isdecimal():
        raise WeightsError(f"weights of a text encoder must be its directory's or 'random:SEED', got {source!r}")
    transformers = import_transformers()
    config = _configuration(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(digits))
        try:
            network: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=False)
        except (ValueError, KeyError, TypeError) as error:
            raise BackboneError(f"{directory.name!r} must be a text encoder: {_first_line(error)}") from error
    return network.float(), source


def network_of_config(values: Mapping[str, Any]) -> nn.Module:
    """Return an encoder of transformers' own class for a configuration's values, its weights to be loaded.

    Raises `BackboneError` for a kind that transformers does not have itself: no code of anybody else is run.
    """
    transformers = import_transformers()
    kind = values.get("model_type")
    try:
        with _quiet(transformers), torch.device("cpu"):
            config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in values.items() if k != "model_type"})
            network: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"a text encoder must be of a kind that transformers {transformers.__version__} has, got {kind!r:.60}: "
            f"{_first_line(error)}"
        ) from error
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # type: ignore[assignment]
    return network.float()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' remarks, which concern training, out of a command's output."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
