"""The directory of a text encoder, as transformers and sentence-transformers write it, here or in the hub's cache.

Only JSON and safetensors files are looked at, and of a hub only these are fetched: nothing pickled, no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from featcache.backbone.hub import require_hub
from featcache.errors import BackboneError, FormatError, MissingError, WeightsError
from featcache.recipe import Pooling
from featcache.system.json import MOST_BYTES, parse_json

_MOST_TOKENIZER_BYTES = 1 << 28
_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls", "max": "max", "max_tokens": "max",
             "lasttoken": "last"}  # fmt: skip
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class EncoderDirectory:
    """What lies in an encoder's directory.

    `name`: as it was asked for. `folder`: of ``config.json``, the weights and the tokenizer. `config`: that of
    transformers. `tokenizer`: the bytes of ``tokenizer.json``. `max_length`, `lowercase`, `pooling`, `normalize`,
    `prefix`: what sentence-transformers' files say, `max_length` also what the tokenizer's and the network's say, None
    where none does.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tokenizer: bytes
    max_length: int | None
    truncation_side: str
    lowercase: bool
    pooling: Pooling
    normalize: bool
    prefix: str


def open_encoder_directory(name: str) -> EncoderDirectory:
    """Return the encoder's directory `name`, a path or a hub's ``OWNER/MODEL[@REVISION]``.

    Raises `BackboneError` for one that is no text encoder or has parts that are not known, `WeightsError` where the hub
    cannot give it or has no safetensors, `MissingError` for a path that is not there, `FormatError` for damaged JSON.
    """
    place: _Place = _LocalPlace(Path(name)) if Path(name).is_dir() else _HubPlace(name)
    modules = place.json("modules.json", optional=True)
    inner, pooling, normalize = _read_modules(place, modules, name)
    config = place.json(f"{inner}config.json")
    if not isinstance(config, dict):
        raise FormatError(f"config.json of {name!r} must be a JSON object: get the model again")
    if config.get("is_encoder_decoder"):
        raise BackboneError(
            f"a text encoder must be one network, {name!r} is an encoder with a decoder: choose another"
        )
    sentence = _mapping(place.json(f"{inner}sentence_bert_config.json", optional=True))
    tokenizer_config = _mapping(place.json(f"{inner}tokenizer_config.json", optional=True))
    prompts = _mapping(place.json("config_sentence_transformers.json", optional=True))
    tokenizer = place.file(f"{inner}tokenizer.json", optional=True)
    if tokenizer is None:
        raise BackboneError(
            f"a text encoder must have a tokenizer.json, {name!r} has none: save its tokenizer anew with transformers"
        )
    if tokenizer.stat().st_size > _MOST_TOKENIZER_BYTES:
        raise FormatError(f"tokenizer.json of {name!r} must be below {_MOST_TOKENIZER_BYTES} bytes")
    folder = place.folder(inner)
    return EncoderDirectory(
        name=name,
        folder=folder,
        config=config,
        tokenizer=tokenizer.read_bytes(),
        max_length=_max_length(sentence, tokenizer_config, config),
        truncation_side="left" if tokenizer_config.get("truncation_side") == "left" else "right",
        lowercase=bool(sentence.get("do_lower_case", False)),
        pooling=pooling,
        normalize=normalize,
        prefix=_default_prompt(prompts),
    )


def require_weights(directory: EncoderDirectory) -> None:
    """Have the safetensors of a hub's encoder lie beside its config; `WeightsError` where there are none."""
    if (directory.folder / _WEIGHTS).is_file() or (directory.folder / _INDEX).is_file():
        return
    if Path(directory.name).is_dir():
        raise WeightsError(
            f"the weights of {directory.name!r} must be {_WEIGHTS}, it is not there (nothing pickled is loaded): save "
            "them as safetensors, or give weights='random:SEED' for a network that was never trained"
        )
    inner = _inner_of(directory)
    try:
        require_hub(directory.name, f"{inner}{_WEIGHTS}")
    except WeightsError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        index = parse_json(require_hub(directory.name, f"{inner}{_INDEX}").read_bytes())
        for shard in sorted(set(_mapping(_mapping(index).get("weight_map")).values())):
            require_hub(directory.name, f"{inner}{shard}")


def weights_files(directory: EncoderDirectory) -> list[Path]:
    """Return the safetensors files of an encoder's directory, one or its parts.

    Raises as `require_weights`, and `FormatError` where the list of the parts is damaged.
    """
    require_weights(directory)
    if (directory.folder / _WEIGHTS).is_file():
        return [directory.folder / _WEIGHTS]
    index = _mapping(_mapping(_read_json(directory.folder / _INDEX)).get("weight_map"))
    return [directory.folder / str(shard) for shard in sorted(set(map(str, index.values())))]


class _LocalPlace:
    """A directory on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, name: str, *, optional: bool = False) -> Path | None:
        path = self.root / name
        if path.is_file():
            return path
        if optional:
            return None
        raise MissingError(f"a text encoder must have {name}, {str(self.root)!r} has none: save it with transformers")

    def json(self, name: str, *, optional: bool = False) -> Any:
        path = self.file(name, optional=optional)
        return None if path is None else _read_json(path)

    def folder(self, inner: str) -> Path:
        return self.root / inner


class _HubPlace(_LocalPlace):
    """A repository of the model hub; its files lie in the hub's cache, links that lead to their bytes."""

    def __init__(self, name: str) -> None:
        if name.count("/") != 1 or name.startswith(("/", ".")):
            raise MissingError(
                f"a text encoder must be a directory or a hub's OWNER/MODEL, {name!r} is no directory: name one"
            )
        self.name = name

    def file(self, name: str, *, optional: bool = False) -> Path | None:
        try:
            return require_hub(self.name, name)
        except WeightsError as error:
            if optional and isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def folder(self, inner: str) -> Path:
        return require_hub(self.name, f"{inner}config.json").parent


_Place = _LocalPlace


def _inner_of(directory: EncoderDirectory) -> str:
    """Return the path, ending in ``/``, of the network inside a hub's repository; empty where it lies at the top."""
    place = _HubPlace(directory.name)
    return _read_modules(place, place.json("modules.json", optional=True), directory.name)[0]


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MOST_BYTES:
        raise FormatError(f"{str(path)!r} must be below {MOST_BYTES} bytes: get the model again")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{str(path)!r} must be JSON, got: {error}; get the model again") from error


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_modules(place: _LocalPlace, modules: Any, name: str) -> tuple[str, Pooling, bool]:
    """Return where the network lies (ending in ``/``), how its tokens are pooled, and whether rows are normalised."""
    if modules is None:
        return "", "mean", False
    inner, normalize = "", False
    pooling: Pooling = "mean"
    for module in modules if isinstance(modules, list) else [None]:
        kind = str(_mapping(module).get("type", "")).rpartition(".")[2]
        path = str(_mapping(module).get("path", ""))
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise FormatError(f"paths in modules.json of {name!r} must stay below it, got {path!r}")
        if kind == "Transformer":
            inner = f"{path}/" if path else ""
        elif kind == "Pooling":
            pooling = _pooling(_mapping(place.json(f"{path}/config.json")), name)
        elif kind == "Normalize":
            normalize = True
        else:
            raise BackboneError(
                f"the modules of {name!r} must be Transformer, Pooling and Normalize, it has "
                f"{kind or module!r}: choose another encoder"
            )
    return inner, pooling, normalize


def _pooling(config: Mapping[str, Any], name: str) -> Pooling:
    """Return the pooling that a ``1_Pooling/config.json`` of either form says."""
    chosen = config.get("pooling_mode")
    if chosen is None:
        chosen = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
    modes = [chosen] if isinstance(chosen, str) else list(chosen)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise BackboneError(
            f"the pooling must be one of {sorted(set(_POOLINGS.values()))!r}, {name!r} has {modes!r}: choose one with "
            "pooling=, or another encoder"
        )
    if config.get("include_prompt") is False:
        raise BackboneError(f"the pooling must take the prefix's tokens with it, that of {name!r} leaves them out")
    return cast("Pooling", _POOLINGS[modes[0]])


def _max_length(sentence: Mapping[str, Any], tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> int | None:
    """Return the length that sentence-transformers' file says, else the least of the tokenizer's and the network's."""
    chosen = sentence.get("max_seq_length")
    if type(chosen) is int and chosen > 0:
        return chosen
    positions = config.get("max_position_embeddings")
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") and type(positions) is int:
        positions -= 2  # RoBERTa's positions begin behind the padding's
    limits = [
        value for value in (tokenizer.get("model_max_length"), positions) if type(value) is int and 0 < value < 1 << 17
    ]
    return min(limits, default=None)


def _default_prompt(config: Mapping[str, Any]) -> str:
    prompt = _mapping(config.get("prompts")).get(config.get("default_prompt_name") or "", "")
    return prompt if isinstance(prompt, str) else ""
