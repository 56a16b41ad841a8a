"""`MergedModel`: preprocessing, backbone and head as one module with its labels inside, and its directory form.

    MODEL/model.json            architecture (with pruned widths), Recipe, classes, head, lineage, digests of the files
    MODEL/weights.safetensors   every parameter and buffer, by name
    MODEL/quant.json            where quantized: scale, zero point, signedness and axis of each tensor
    MODEL/golden/               JPEGs and the logits they must give (`featcache.golden`)

Nothing is pickled: the timm network is built again from its name, folded and narrowed as ``model.json`` says, and the
tensors are loaded into it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featcache.backbone import Backbone
from featcache.errors import CorruptError, FeatcacheError, FormatError, InputError, MissingError
from featcache.files import new_directory
from featcache.golden import Golden
from featcache.heads import Head, head_class
from featcache.heads.calibration import Calibration
from featcache.heads.unknown import UnknownRule
from featcache.recipe import Preprocessing, Recipe, canonical_json
from featcache.structure import Widths, fold_batchnorms, resize_layers
from featcache.timm_import import import_timm

FORMAT = "featcache.model"
VERSION = 1
MODEL_FILE, WEIGHTS_FILE, QUANT_FILE, GOLDEN_FOLDER = "model.json", "weights.safetensors", "quant.json", "golden"


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was done to the timm network's layout since it was built: values that `load_model` replays.

    `folded`: ``{convolution: batch norm}`` folded, by module name. `widths`: the layers whose widths differ, with them.
    """

    folded: Mapping[str, str] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "folded": dict(self.folded),
            "widths": {name: dict(values) for name, values in self.widths.items()},
        }

    def apply(self, network: nn.Module) -> None:
        """Do it to `network`, in place; values are undefined until loaded."""
        resize_layers(network, self.widths)  # first: the widths name batch norms that folding takes away
        fold_batchnorms(network, self.folded)


class MergedModel(nn.Module):
    """Image in, class probabilities out: normalisation, backbone and head in one module, in eval mode.

    `backbone`: normalised float (N, 3, H, W) → a tuple of outputs. `head`: features → logits, made of `fitted`, the
    Head's values. `recipe`: that of the features `fitted` was trained on; its ``model_digest`` is set where the
    backbone is no longer timm's own. `surgery`: what was done to the network. `quantization`: the document of
    ``quant.json`` or None. `lineage`: one entry per verb, from merge on.
    """

    pixel_mean: torch.Tensor
    pixel_gain: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        fitted: Head,
        *,
        recipe: Recipe,
        surgery: Surgery | None = None,
        quantization: Mapping[str, Any] | None = None,
        lineage: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fitted = fitted
        self.head = fitted.to_module()
        self.recipe = recipe
        self.surgery = surgery or Surgery()
        self.quantization = quantization
        self.lineage = tuple(dict(step) for step in lineage)
        preprocessing = recipe.preprocessing
        self.register_buffer("pixel_mean", torch.tensor(preprocessing.mean) * 255.0, persistent=False)
        self.register_buffer("pixel_gain", 1.0 / (torch.tensor(preprocessing.std) * 255.0), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.fitted.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes this model's input."""
        return self.recipe.preprocessing

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Return the backbone's input (N, 3, H, W) float32 of `image` (N, H, W, 3) uint8 RGB."""
        pixels = (image.to(torch.float32) - self.pixel_mean) * self.pixel_gain
        return pixels.permute(0, 3, 1, 2)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, (N, num_features) float32, of `image` (N, H, W, 3) uint8."""
        outputs = self.backbone(self.normalise(image))
        flat = [output.flatten(1) for output in outputs]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, probabilities), each (N, n_classes) float32, of `image` (N, H, W, 3) uint8 RGB.

        `image` is already resized and cropped. Probabilities are the softmax of the logits, for multi-label a sigmoid
        of each; for regression there are none and the logits, which are the values, stand in both places.
        """
        logits = self.head(self.features(image))
        if self.fitted.task == "classification":
            return logits, torch.softmax(logits, dim=-1)
        return logits, torch.sigmoid(logits) if self.fitted.task == "multilabel" else logits

    def with_head(self, fitted: Head) -> MergedModel:
        """Return a model of this backbone (shared) with another head."""
        return MergedModel(
            self.backbone, fitted, recipe=self.recipe, surgery=self.surgery, quantization=self.quantization,
            lineage=self.lineage,
        )  # fmt: skip

    def copy(self, **changes: Any) -> MergedModel:
        """Return a deep copy that shares no tensor; `changes` replace constructor arguments."""
        values = {
            "recipe": self.recipe, "surgery": self.surgery, "quantization": self.quantization, "lineage": self.lineage,
        }  # fmt: skip
        return MergedModel(copy.deepcopy(self.backbone), self.fitted, **{**values, **changes})

    def digest(self) -> str:
        """Return the sha256 of the backbone as it is now: timm name, surgery, scales, every parameter and buffer."""
        state = hashlib.sha256()
        described = {
            "model": self.recipe.model, "model_kwargs": dict(self.recipe.model_kwargs),
            "surgery": self.surgery.to_json(), "quantization": self.quantization,
        }  # fmt: skip
        state.update(canonical_json(described).encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            state.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
            state.update(tensor.contiguous().numpy().tobytes())
        return state.hexdigest()

    def parameter_count(self) -> int:
        """Return the number of parameters, backbone and head."""
        return sum(parameter.numel() for parameter in self.parameters())


def save_model(
    model: MergedModel, path: str | os.PathLike[str], *, golden: Golden | None = None, overwrite: bool = False
) -> Path:
    """Write `model` as the directory `path` and return it; it appears whole or not at all.

    Equal models give equal bytes. Raises `ExistsError` where `path` exists and `overwrite` is false, `StorageError`
    where the disk refuses.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(_stored(model).items())}
    files = {WEIGHTS_FILE: save(tensors)}
    if model.quantization is not None:
        files[QUANT_FILE] = _json_bytes(model.quantization)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": {
            "timm": _timm_name(model),
            "model_kwargs": dict(model.recipe.model_kwargs),
            "outputs": list(model.backbone.outputs),
            **model.surgery.to_json(),
        },
        "recipe": model.recipe.to_json(),
        "model_digest": model.recipe.model_digest,
        "classes": list(model.classes),
        "preprocessing": model.preprocessing.to_json(),
        "head": _head_document(model.fitted),
        "lineage": list(model.lineage),
        "parameters": model.parameter_count(),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    files[MODEL_FILE] = _json_bytes(document)
    target = Path(os.path.abspath(path))
    with new_directory(target, overwrite=overwrite) as folder:
        for name, data in files.items():
            _write(folder / name, data)
        if golden is not None:
            (folder / GOLDEN_FOLDER).mkdir()
            for name, data in golden.files().items():
                _write(folder / GOLDEN_FOLDER / name, data)
    return target


def load_model(path: str | os.PathLike[str]) -> MergedModel:
    """Return the model in directory `path`, in eval mode, on the CPU.

    Raises `MissingError` where there is none, `FormatError` for another format or version, `CorruptError` where a file
    does not have the digest that ``model.json`` states.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    document = read_model_json(path)
    data = _checked_bytes(path, WEIGHTS_FILE, document)
    quantization = None
    if QUANT_FILE in document["sha256"]:
        quantization = json.loads(_checked_bytes(path, QUANT_FILE, document))
    try:
        tensors = load(data)
        recipe = Recipe.from_json(document["recipe"])
        architecture = document["architecture"]
        surgery = Surgery(architecture["folded"], architecture["widths"])
        network = _build_network(architecture)
        surgery.apply(network)
        own = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in own.items()})
        backbone = wrap_network(network, recipe, outputs=architecture["outputs"])
        fitted = _head_from_document(document["head"], tensors, document["classes"])
        return MergedModel(
            backbone, fitted, recipe=recipe, surgery=surgery, quantization=quantization, lineage=document["lineage"]
        )
    except (KeyError, TypeError, AttributeError, SafetensorError, RuntimeError) as error:
        if isinstance(error, FeatcacheError):
            raise
        raise CorruptError(f"{os.fspath(path)!r} must hold a whole model, got {error!r}: merge it again") from error


def wrap_network(network: nn.Module, recipe: Recipe, *, outputs: Sequence[str]) -> Backbone:
    """Return `network`, whatever was done to it, as the Backbone of which `recipe` tells the rest."""
    return Backbone(
        network,
        model_name=recipe.model,
        model_kwargs=recipe.model_kwargs,
        preprocessing=recipe.preprocessing,
        weights_label=recipe.weights,
        outputs=outputs,
        weights_sha256=recipe.weights_sha256,
        model_digest=recipe.model_digest,
    )


def _build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Return timm's network by name, as `load_backbone` makes it, with values to be loaded."""
    network: nn.Module = import_timm().create_model(architecture["timm"], **architecture["model_kwargs"])
    if "logits" not in architecture["outputs"] and getattr(network, "num_classes", None):
        reset: Any = network.reset_classifier
        reset(0)
    return network.requires_grad_(False).eval()


def read_model_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the document in ``model.json`` of directory `path`, its format and version checked."""
    try:
        document = json.loads((Path(path) / MODEL_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(
            f"MODEL must be a directory with {MODEL_FILE}; {os.fspath(path)!r} is none: make one with 'featcache merge'"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{MODEL_FILE} of {os.fspath(path)!r} must be JSON, got {error}: merge it again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatError(f"{MODEL_FILE} must have the format {FORMAT!r}; {os.fspath(path)!r} has another")
    if document.get("version") != VERSION:
        raise FormatError(
            f"a model must be of version {VERSION}; {os.fspath(path)!r} has {document.get('version')!r}: open it with "
            "the featcache that wrote it"
        )
    missing = {"architecture", "recipe", "classes", "head", "lineage", "sha256"} - set(document)
    if missing:
        raise CorruptError(f"{MODEL_FILE} of {os.fspath(path)!r} must have {sorted(missing)!r}: merge it again")
    return document


def verify_model(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return a line per problem of the model in directory `path`: a digest that does not match, a golden file lost."""
    try:
        load_model(path)
        golden = Path(path) / GOLDEN_FOLDER
        if golden.exists():
            Golden.load(golden)
    except FeatcacheError as error:
        return (str(error),)
    return ()


def model_bytes(path: str | os.PathLike[str]) -> int:
    """Return the bytes of the model in directory `path`, golden images left out."""
    return sum(file.stat().st_size for file in Path(path).iterdir() if file.is_file())


def _stored(model: MergedModel) -> dict[str, torch.Tensor]:
    """Return what goes into the weights file: the backbone's state, the head's arrays."""
    tensors = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    for name, array in model.fitted.arrays().items():
        tensors[f"head.{name}"] = torch.tensor(array)
    return tensors


def _timm_name(model: MergedModel) -> str:
    """Return the name under which timm builds the network without asking a hub."""
    name = model.recipe.model
    if not name.startswith("hf-hub:"):
        return name
    config: Any = getattr(model.backbone.network, "pretrained_cfg", {})
    return str(config["architecture"])


def _head_document(fitted: Head) -> dict[str, Any]:
    return {
        "kind": fitted.kind,
        "task": fitted.task,
        "columns": list(fitted.columns),
        "fingerprint": fitted.fingerprint,
        "settings": dict(fitted.settings),
        "options": fitted.options(),
        "calibration": None if fitted.calibration is None else fitted.calibration.to_json(),
        "unknown": None if fitted.unknown is None else fitted.unknown.to_json(),
    }


def _head_from_document(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], classes: list[str]) -> Head:
    arrays = {name.removeprefix("head."): t.numpy() for name, t in tensors.items() if name.startswith("head.")}
    calibration, unknown = document["calibration"], document["unknown"]
    common = {
        "classes": tuple(classes),
        "task": document["task"],
        "columns": tuple(document["columns"]),
        "fingerprint": document["fingerprint"],
        "settings": document["settings"],
        "calibration": None if calibration is None else Calibration(**calibration),
        "unknown": None if unknown is None else UnknownRule.from_json(unknown),
    }
    return head_class(document["kind"]).from_state(arrays, document["options"], common)


def _checked_bytes(path: str | os.PathLike[str], name: str, document: Mapping[str, Any]) -> bytes:
    try:
        data = (Path(path) / name).read_bytes()
    except FileNotFoundError as error:
        raise CorruptError(f"a model must hold {name}; {os.fspath(path)!r} has none: merge it again") from error
    if hashlib.sha256(data).hexdigest() != document["sha256"].get(name):
        raise CorruptError(
            f"{name} must have the sha256 that {MODEL_FILE} states; {os.fspath(path)!r} has other bytes: merge it again"
        )
    return data


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def changed_recipe(model: MergedModel, **changes: Any) -> Recipe:
    """Return the Recipe of rows computed with `model`'s backbone as it is now: its own digest, and `changes`."""
    return dataclasses.replace(model.recipe, model_digest=model.digest(), **changes)


def check_same_classes(model: MergedModel, classes: Sequence[str], what: str) -> None:
    """Raise `InputError` where `classes` are not the model's."""
    if tuple(classes) != model.classes:
        raise InputError(
            f"{what} must have the model's {len(model.classes)} classes {list(model.classes)!r}, got {list(classes)!r}"
        )
