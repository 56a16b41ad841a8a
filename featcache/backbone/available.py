"""The backbones at hand: what ``--backbone NAME`` loads here with nobody asked.

They are the embedded one, what lies in the model hub's local cache, and files and directories that a user names. Sizes
come from the table of probes, from ``config.json`` and from the headers of the weights files. timm, and torch with it,
is imported only for a network of timm's of which none of these tells the input's size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featcache.backbone.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.backbone.hub import HUB_FILES, cached_file, cached_models
from featcache.backbone.probes import RANKED_ON, Probe, read_probes
from featcache.backbone.text.directory import open_encoder_directory, weights_files
from featcache.backbone.timm_import import import_timm
from featcache.backbone.weights_file import WeightsHeader, read_header
from featcache.errors import FeatcacheError, FormatError, MissingError, WeightsError
from featcache.system.json import parse_json
from featcache.system.members import digest_file

EMBEDDED, IN_HUB_CACHE, IN_FILE = "embedded", "hub cache", "file"
_TIMM = "timm"  # the owner of timm's own repositories, which are called as its models are
_WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")  # what transformers' configurations call the width of a row

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AvailableBackbone:
    """A backbone at hand.

    Attributes
    ----------
    name : str
        What ``--backbone`` takes.
    weights : str or None
        What ``--weights`` takes with it, None where the name says enough.
    input : str
        ``image`` or ``text``.
    input_size : tuple of int or None
        Height and width of an image, or the most tokens of a text; None where nothing says so.
    parameters : int
        Without a classifier.
    num_features : int or None
        The length of a row, None where nothing says so.
    bytes : int
        Of the weights' files.
    where : str
        ``embedded``, ``hub cache`` or ``file``.
    path : str
        Of the weights' file, or of the directory.
    accuracy : mapping or None
        What a linear head reaches on it, by data set, in [0, 1]; None where it was not measured.
    accuracy_with : str or None
        The weights file `accuracy` was measured with, where it was not this one but another of the same network.
    images_per_second : float or None
        How fast this machine computes it, None where that was not asked for, or it takes no images.
    """

    name: str
    weights: str | None
    input: str
    input_size: tuple[int, ...] | None
    parameters: int
    num_features: int | None
    bytes: int
    where: str
    path: str
    accuracy: Mapping[str, float] | None = None
    accuracy_with: str | None = None
    images_per_second: float | None = None

    @property
    def rank(self) -> float | None:
        """The figure that backbones are compared by, None where there is none: such a one is never the best."""
        return None if self.accuracy is None else self.accuracy[RANKED_ON]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **dataclasses.asdict(self),
            "input_size": None if self.input_size is None else list(self.input_size),
            "accuracy": None if self.accuracy is None else dict(self.accuracy),
        }


def available_backbones(paths: Iterable[str | Path] = (), *, note: Note) -> list[AvailableBackbone]:
    """Return the backbones at hand: those that were probed best first, then the others by name, texts' last.

    `paths`: weights files (``.safetensors`` that say their network), folders of such, and directories of text encoders.
    `note`: called with a line for each backbone that is there but cannot be used.
    Raises `MissingError` for a path that is not there, `WeightsError` for a file that is no safetensors or does not say
    its network, `FormatError` and `BackboneError` for a damaged or an unsuitable directory of a text encoder.
    """
    found = [*probed_backbones(note=note), *_others_in_hub_cache(note)]
    for path in paths:
        found += _at(Path(path), note)
    return sorted(found, key=_order)


def probed_backbones(*, note: Note) -> list[AvailableBackbone]:
    """Return the embedded backbone and those in the hub's local cache for which there is a figure, best first.

    `note`: as for `available_backbones`.
    """
    cached = [cached_probe(probe, note=note) for probe in read_probes() if probe.hub is not None]
    return sorted([_embedded(), *(one for one in cached if one is not None)], key=_order)


def cached_probe(probe: Probe, *, note: Note) -> AvailableBackbone | None:
    """Return the network of `probe` with the hub's weights, None where they are not whole in the hub's local cache.

    `note`: as for `available_backbones`.
    """
    return _or_note(partial(_cached_probe, probe), note)


def hub_name(probe: Probe) -> str:
    """Return timm's full name of the network of `probe` with the hub's weights."""
    return f"{probe.network}.{probe.tag}"


def _order(backbone: AvailableBackbone) -> tuple[bool, float, str, str]:
    return (backbone.input != "image", -(backbone.rank or 0.0), backbone.name, backbone.path)


def _or_note(find: Callable[[], AvailableBackbone | None], note: Note) -> AvailableBackbone | None:
    try:
        return find()
    except FeatcacheError as error:  # one that is damaged must not hide the others
        note(str(error))
        return None


def _embedded() -> AvailableBackbone:
    probe = next(one for one in read_probes() if one.name == EMBEDDED_BACKBONE)
    return AvailableBackbone(
        name=EMBEDDED_BACKBONE,
        weights=None,
        input="image",
        input_size=(probe.height, probe.width),
        parameters=probe.parameters,
        num_features=probe.num_features,
        bytes=probe.bytes,
        where=EMBEDDED,
        path=str(embedded_weights()),
        accuracy=probe.accuracy,
    )


# --- the hub's local cache ------------------------------------------------------------------------------------------


def _cached_probe(probe: Probe) -> AvailableBackbone | None:
    assert probe.hub is not None
    path = _cached_weights(probe.hub)
    if path is None:
        return None
    header = read_header(path)
    parameters = header.parameters(without=probe.classifier)
    if parameters != probe.parameters:
        raise WeightsError(
            f"{str(path)!r} must hold the {probe.parameters:,} parameters of {probe.network}, it holds {parameters:,}: "
            "remove it from the hub's local cache"
        )
    return AvailableBackbone(
        name=hub_name(probe),
        weights=None,
        input="image",
        input_size=(probe.height, probe.width),
        parameters=parameters,
        num_features=probe.num_features,
        bytes=header.bytes,
        where=IN_HUB_CACHE,
        path=str(path),
        accuracy=probe.accuracy,
        accuracy_with=probe.weights,
    )


def _others_in_hub_cache(note: Note) -> Iterator[AvailableBackbone]:
    probed = {probe.hub for probe in read_probes()}
    try:
        repositories = [name for name in cached_models() if name not in probed]
    except WeightsError as error:
        note(str(error))
        return
    for repository in repositories:
        found = _or_note(partial(_in_hub_cache, repository), note)
        if found is not None:
            yield found


def _in_hub_cache(repository: str) -> AvailableBackbone | None:
    """Return what ``--backbone`` loads of a repository in the hub's local cache, None where that is nothing."""
    place = cached_file(repository, "config.json")
    config = _read_config(place) if place is not None else {}
    if place is not None and "model_type" in config and cached_file(repository, "tokenizer.json") is not None:
        return _text_encoder(repository, place.parent, IN_HUB_CACHE)
    owner, _, model = repository.partition("/")
    if owner != _TIMM and "architecture" not in config:
        return None
    path = _cached_weights(repository)
    settings = _mapping(config.get("pretrained_cfg")) or (_settings_of_timm(model) if owner == _TIMM else None)
    if path is None or settings is None:
        return None
    name = model if owner == _TIMM else f"hf-hub:{repository}"
    return _image_backbone(name, read_header(path), settings, where=IN_HUB_CACHE, path=path)


def _cached_weights(repository: str) -> Path | None:
    return next((path for file in HUB_FILES if (path := cached_file(repository, file)) is not None), None)


# --- files and directories ------------------------------------------------------------------------------------------


def _at(path: Path, note: Note) -> Iterator[AvailableBackbone]:
    if os.path.isfile(path):
        yield _weights_file(path)
    elif os.path.isfile(path / "config.json"):
        yield _text_encoder(str(path), path, IN_FILE)
    else:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise MissingError(
                f"{str(path)!r} must be a .safetensors file, a folder of such, or a text encoder's directory: it is not"
            )
        for file in files:
            found = _or_note(partial(_weights_file, file), note)
            if found is not None:
                yield found


def _weights_file(path: Path) -> AvailableBackbone:
    """Return the network that a weights file names; the figure is that of these very bytes, if there is one."""
    header = read_header(path)
    network = header.metadata.get("timm_model")
    if network is None:
        raise WeightsError(
            f"{str(path)!r} must name its network in its metadata ('timm_model'), it does not: build with it by "
            "--backbone NAME --weights FILE"
        )
    same = next((one for one in read_probes() if one.bytes == header.bytes and one.sha256 == digest_file(path)), None)
    settings = _settings_of_timm(network) or {}
    own = _mapping(_decoded(header.metadata.get("preprocessing")))
    if own:
        settings = {**settings, "input_size": [3, own.get("height"), own.get("width")]}
    found = _image_backbone(network, header, settings, where=IN_FILE, path=path)
    return dataclasses.replace(found, weights=str(path), accuracy=None if same is None else same.accuracy)


def _text_encoder(name: str, folder: Path, where: str) -> AvailableBackbone:
    directory = open_encoder_directory(str(folder))
    headers = [read_header(file) for file in weights_files(directory)]
    widths = [directory.config[key] for key in _WIDTHS if isinstance(directory.config.get(key), int)]
    return AvailableBackbone(
        name=name,
        weights=None,
        input="text",
        input_size=None if directory.max_length is None else (directory.max_length,),
        parameters=sum(header.parameters(without="pooler") for header in headers),
        num_features=next(iter(widths), None),
        bytes=sum(header.bytes for header in headers),
        where=where,
        path=str(folder),
    )


# --- sizes ----------------------------------------------------------------------------------------------------------


def _image_backbone(
    name: str, header: WeightsHeader, settings: Mapping[str, Any], *, where: str, path: Path
) -> AvailableBackbone:
    """`settings`: ``input_size`` and ``classifier`` as timm's configurations have them."""
    classifier = settings.get("classifier")
    if isinstance(classifier, Sequence) and not isinstance(classifier, str):
        classifier = next(iter(classifier), None)  # two, one for each token
    parameters = header.parameters(without=classifier)
    alike = [probe for probe in read_probes() if (probe.network, probe.parameters) == (name, parameters)]
    size = settings.get("input_size")
    known = isinstance(size, Sequence) and len(size) == 3 and all(isinstance(side, int) for side in size)
    return AvailableBackbone(
        name=name,
        weights=None,
        input="image",
        input_size=tuple(size[1:]) if known and size is not None else None,
        parameters=parameters,
        num_features=header.features_into(classifier) or next((probe.num_features for probe in alike), None),
        bytes=header.bytes,
        where=where,
        path=str(path),
    )


def _settings_of_timm(name: str) -> Mapping[str, Any] | None:
    """Return ``input_size`` and ``classifier`` of timm's network `name`; None where timm knows no such network."""
    for probe in read_probes():
        if name in (probe.network, hub_name(probe)) and probe.name != EMBEDDED_BACKBONE:
            return {"input_size": [3, probe.height, probe.width], "classifier": probe.classifier}
    settings = import_timm().get_pretrained_cfg(name)
    return None if settings is None else dict(settings.to_dict())


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(parse_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise FormatError(f"{str(path)!r} must be JSON, got: {error}; get the model again") from error


def _decoded(text: str | None) -> Any:
    try:
        return None if text is None else parse_json(text)
    except ValueError:
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
