"""The `Recipe`: everything that determines a feature row besides the bytes of the input, and its fingerprint.

Two caches with the same fingerprint hold interchangeable rows; with different ones they never mix (law 1).
The canonical form is JSON with sorted keys and no white space, hashed with sha256.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

from featcache.errors import FormatError, InputError
from featcache.system.json import canonical_json

Decoder = Literal["fast", "pillow", "utf-8", "none"]
Orientation = Literal["exif", "none"]
Precision = Literal["fp32", "bf16", "fp16", "int8-dynamic", "int8"]

_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest")
_CROP_MODES = ("center", "squash")
MOST_PIXELS = 1 << 14  # of a side of the input; no network takes near as many

Pooling = Literal["mean", "cls", "last", "max"]
_POOLINGS = ("mean", "cls", "last", "max")
MOST_TOKENS = 1 << 17  # of a text; no encoder takes more
MOST_CHARACTERS = 1 << 20  # of a text that a tokenizer is given by default: more than fill any encoder


class InputPreprocessing(Protocol):
    """How an input becomes what a network takes: an input kind's part of the `Recipe`, as a frozen dataclass.

    `input`: the kind's name. `to_json` gives JSON values that `from_json` takes; equal values mean equal rows.
    """

    input: ClassVar[str]

    def to_json(self) -> dict[str, Any]: ...
    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self: ...


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a decoded RGB image becomes the network's input: resize, crop, normalise.

    Parameters
    ----------
    height, width : int
        The network's input in pixels.
    resize : int
        With ``crop_mode="center"`` the short side is scaled to this many pixels before the centre crop.
    interpolation : {"bilinear", "bicubic", "lanczos", "nearest"}
        Of the resize, antialiased.
    crop_mode : {"center", "squash"}
        With ``"squash"`` the image is scaled to (height, width), ignoring its aspect.
    mean, std : three floats each
        Per RGB channel, of values in [0, 1]; they are applied inside the network's graph.

    Raises
    ------
    InputError
        For sizes below 1, a resize below the crop, and unknown names.

    Examples
    --------
    >>> from featcache import Preprocessing
    >>> size = Preprocessing(224, 224, 256, "bicubic", "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    >>> Preprocessing.from_json(size.to_json()) == size
    True
    """

    input: ClassVar[str] = "image"
    height: int
    width: int
    resize: int
    interpolation: str
    crop_mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        sides = (self.height, self.width, self.resize)
        if not all(type(side) is int and 1 <= side <= MOST_PIXELS for side in sides):
            raise InputError(f"height, width and resize must be 1 to {MOST_PIXELS} pixels, got {sides!r:.100}")
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {_INTERPOLATIONS}, got {self.interpolation!r}")
        if self.crop_mode not in _CROP_MODES:
            raise InputError(f"crop_mode must be one of {_CROP_MODES}, got {self.crop_mode!r}")
        if self.crop_mode == "center" and self.resize < max(self.height, self.width):
            raise InputError(f"resize must be at least the crop of {self.height}x{self.width}, got {self.resize}")
        moments = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(_is_number, moments)) or min(self.std) <= 0:
            raise InputError(
                f"mean and std must be three numbers each, std above 0, got {self.mean!r:.100}, {self.std!r:.100}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing that `to_json` wrote."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


@dataclass(frozen=True, slots=True)
class TextPreprocessing:
    """How a text becomes an encoder's input, and its tokens' vectors one: tokenizer, length, pooling.

    Parameters
    ----------
    tokenizer_sha256 : str
        Of the bytes of ``tokenizer.json``.
    max_length : int
        Tokens of a text, the special ones and the prefix included; the rest is cut off.
    truncation_side : {"right", "left"}
        Which end is cut off.
    max_characters : int
        Of a text, on the side that is kept; those beyond are cut off before it is split into tokens.
    prefix : str
        Put before each text, such as ``"query: "``.
    lowercase : bool
        Whether a text is put in lower case before all else that the tokenizer does.
    pooling : {"mean", "cls", "last", "max"}
        Of the last layer's tokens, those of padding left out: their mean, the first, the last, the largest values.
    normalize : bool
        Whether the pooled vector is scaled to length 1.

    Raises
    ------
    InputError
        For a digest of another length, bounds below 1, unknown names.

    Examples
    --------
    >>> from featcache.recipe import TextPreprocessing
    >>> short = TextPreprocessing(tokenizer_sha256="0" * 64, max_length=128, prefix="query: ")
    >>> TextPreprocessing.from_json(short.to_json()) == short, short.pooling
    (True, 'mean')
    """

    input: ClassVar[str] = "text"
    tokenizer_sha256: str
    max_length: int
    truncation_side: Literal["right", "left"] = "right"
    max_characters: int = MOST_CHARACTERS
    prefix: str = ""
    lowercase: bool = False
    pooling: Pooling = "mean"
    normalize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer_sha256, str) or len(self.tokenizer_sha256) != 64:
            raise InputError(f"tokenizer_sha256 must be 64 hexadecimal digits, got {self.tokenizer_sha256!r:.80}")
        if type(self.max_length) is not int or not 1 <= self.max_length <= MOST_TOKENS:
            raise InputError(f"max_length must be 1 to {MOST_TOKENS} tokens, got {self.max_length!r:.40}")
        if type(self.max_characters) is not int or self.max_characters < 1:
            raise InputError(f"max_characters must be at least 1, got {self.max_characters!r:.40}")
        if self.truncation_side not in ("right", "left"):
            raise InputError(f"truncation_side must be 'right' or 'left', got {self.truncation_side!r:.40}")
        if not isinstance(self.prefix, str):
            raise InputError(f"prefix must be a text, got {self.prefix!r:.40}")
        if self.pooling not in _POOLINGS:
            raise InputError(f"pooling must be one of {_POOLINGS}, got {self.pooling!r:.40}")
        for name in ("lowercase", "normalize"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r:.40}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TextPreprocessing:
        """Return the preprocessing that `to_json` wrote; `FormatError` where a field is missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            odd = sorted(names ^ set(values))
            raise FormatError(
                f"a text's preprocessing must have exactly {sorted(names)!r}; missing or unknown: {odd!r}"
            )
        return cls(**values)


_kinds: dict[str, type[InputPreprocessing]] = {kind.input: kind for kind in (Preprocessing, TextPreprocessing)}


def register_preprocessing(kind: type[InputPreprocessing]) -> None:
    """Add an input kind's preprocessing, so that Recipes with it can be read; a class again does nothing.

    Raises `InputError` for a name that another class has.
    """
    if _kinds.setdefault(kind.input, kind) is not kind:
        raise InputError(f"the name of an input kind must be free, {kind.input!r} is taken")


def preprocessing_to_json(preprocessing: InputPreprocessing) -> dict[str, Any]:
    """Return JSON values that say the input kind too; images, which were there first, are those that say none."""
    kind = {} if preprocessing.input == Preprocessing.input else {"input": preprocessing.input}
    return {**kind, **preprocessing.to_json()}


def preprocessing_from_json(values: Mapping[str, Any]) -> InputPreprocessing:
    """Return the preprocessing that `preprocessing_to_json` wrote; `FormatError` for a kind that is not known."""
    name = values.get("input", Preprocessing.input)
    if name not in _kinds:
        raise FormatError(
            f"the input kind must be one of {sorted(_kinds)!r}, got {name!r:.60}: import the package that registers it"
        )
    return _kinds[name].from_json({key: value for key, value in values.items() if key != "input"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a feature row besides the input's bytes.

    Parameters
    ----------
    model : str
        timm's full name with its tag, or an ``hf-hub:`` id.
    model_kwargs : mapping
        What ``timm.create_model`` was given.
    model_digest : str or None
        sha256 of a MODEL's changed backbone (pruned, quantized), None for timm's own.
    weights_sha256 : str
        Digest of all parameters and buffers, whatever file they came from.
    outputs : tuple of str
        Names of the stored outputs, in order.
    preprocessing : Preprocessing, TextPreprocessing or another kind's
        From a decoded image, or a text, to the network's input; it says what the inputs are.
    decoder : {"fast", "pillow", "utf-8", "none"}
        Of images; ``fast`` is at most 2 grey levels from ``pillow``. Of texts ``utf-8``.
    dct_scaling : bool
        Whether large JPEGs are decoded at a reduced scale.
    orientation : {"exif", "none"}
        The rule by which images are turned upright.
    views, view_seed : int
        Stored views of each image, view 0 being the plain one; the others are drawn with the seed.
    engine, engine_version, precision : str
        What computed the rows; the version is the major one.
    dtype : {"float16", "float32"}
        What the rows are stored as.
    weights : str
        A label for people (a file name, ``hub``, ``random:SEED``); not part of the identity.

    Raises
    ------
    InputError
        For no view, no or doubled outputs, or a digest of another length.

    Examples
    --------
    >>> import featcache
    >>> with featcache.open_cache("cache") as cache:
    ...     recipe = cache.recipe
    >>> isinstance(recipe, featcache.Recipe), recipe.outputs, len(recipe.fingerprint)
    (True, ('features',), 64)
    >>> featcache.Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    model: str
    model_kwargs: Mapping[str, Any]
    model_digest: str | None
    weights_sha256: str
    outputs: tuple[str, ...]
    preprocessing: InputPreprocessing
    decoder: Decoder
    dct_scaling: bool
    orientation: Orientation
    views: int
    view_seed: int
    engine: str
    engine_version: str
    precision: Precision
    dtype: Literal["float16", "float32"]
    weights: str

    def __post_init__(self) -> None:
        if self.views < 1:
            raise InputError(f"views must be at least 1 (the plain view), got {self.views!r}")
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise InputError(f"outputs must be one or more distinct names, got {self.outputs!r}")
        if len(self.weights_sha256) != 64:
            raise InputError(f"weights_sha256 must be 64 hexadecimal digits, got {self.weights_sha256!r}")

    @property
    def input(self) -> str:
        """The kind of what the rows are of: ``image``, ``text`` or what a program registered."""
        return self.preprocessing.input

    @property
    def image_preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input; `InputError` where the rows are of something else."""
        if not isinstance(self.preprocessing, Preprocessing):
            raise InputError(f"this needs a backbone of images, {self.model!r} is one of input kind {self.input!r}")
        return self.preprocessing

    @property
    def random_weights(self) -> bool:
        """Whether the backbone was never trained; every output that names the weights says so."""
        return self.weights.startswith("random:")

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (64 hexadecimal digits) of the canonical JSON of the identity."""
        return hashlib.sha256(canonical_json(self._identity()).encode()).hexdigest()

    def _identity(self) -> dict[str, Any]:
        identity = self.to_json()
        del identity["weights"]
        return identity

    def differences(self, other: Recipe, *, labels: bool = False) -> dict[str, tuple[Any, Any]]:
        """Return ``{field: (mine, other's)}`` for every differing field of the identity; nested ones are dotted.

        `labels`: of every field, also where the weights are only called differently.
        """
        mine, theirs = (_flatten(one.to_json() if labels else one._identity()) for one in (self, other))
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        }

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["preprocessing"] = preprocessing_to_json(self.preprocessing)
        values["model_kwargs"] = dict(self.model_kwargs)
        values["outputs"] = list(self.outputs)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the Recipe that `to_json` wrote; `FormatError` where a field is missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            odd = sorted(names ^ set(values))
            raise FormatError(f"a Recipe must have exactly the fields of this version; missing or unknown: {odd!r}")
        return cls(
            **{
                **values,
                "preprocessing": preprocessing_from_json(values["preprocessing"]),
                "outputs": tuple(values["outputs"]),
            }
        )


def _is_number(value: object) -> bool:
    """Return whether a value, which may come from a stranger's JSON, is a finite number that float32 holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e38


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
