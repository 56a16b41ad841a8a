"""The directory MODEL: a `MergedModel` saved, loaded and checked.

    MODEL/model.json            architecture (with pruned widths), Recipe, classes, head, lineage, digests of the files
    MODEL/weights.safetensors   every parameter and buffer, by name
    MODEL/quant.json            where quantized: scale, zero point, signedness and axis of each tensor
    MODEL/golden/               JPEGs and the logits they must give (`featcache.model.golden`)

Nothing is pickled: the timm network is built again from its name, folded and narrowed as ``model.json`` says, and the
tensors are loaded into it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featcache.backbone.networks import check_kwargs, create_network
from featcache.errors import CorruptError, FeatcacheError, InputError
from featcache.heads import Head, head_class
from featcache.heads.calibration import Calibration
from featcache.heads.unknown import UnknownRule
from featcache.model.golden import Golden
from featcache.model.halves import goes_in_half
from featcache.model.merged import MergedModel, wrap_network
from featcache.model.quantization import Quantization
from featcache.model.surgery import Surgery
from featcache.recipe import Recipe
from featcache.system.files import new_directory
from featcache.system.json import DocumentKind, parse_document, read_document
from featcache.system.members import read_member

FORMAT = "featcache.model"
VERSION = 1
MODEL_FILE, WEIGHTS_FILE, QUANT_FILE, GOLDEN_FOLDER = "model.json", "weights.safetensors", "quant.json", "golden"
_RENEW = "merge it again"
_DOCUMENT = DocumentKind(
    "MODEL",
    make="make one with 'featcache merge'",
    renew=_RENEW,
    format=FORMAT,
    versions=(VERSION,),
    keys=("architecture", "recipe", "classes", "head", "lineage", "sha256"),
)
_QUANT_DOCUMENT = DocumentKind("a quantization", make="make one with 'featcache quantize'", renew="quantize it again")


def save_model(
    model: MergedModel, path: str | os.PathLike[str], *, golden: Golden | None = None, overwrite: bool = False
) -> Path:
    """Write `model` as the directory `path` and return it; it appears whole or not at all, equal models in equal bytes.

    Parameters
    ----------
    model
        The model.
    path
        The directory to make.
    golden
        Images that travel with the model, and the logits they must give.
    overwrite
        Whether `path` may exist and be replaced.

    Returns
    -------
    Path
        `path`, absolute.

    Raises
    ------
    ExistsError
        Where `path` exists and may not be replaced.
    StorageError
        Where the disk refuses.

    Examples
    --------
    >>> model = load_model("model")
    >>> save_model(model, "copy").name
    'copy'
    >>> load_model("copy").digest() == model.digest()
    True
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(_stored(model).items())}
    files = {WEIGHTS_FILE: save(tensors)}
    if model.quantization is not None:
        files[QUANT_FILE] = _json_bytes(model.quantization.to_json())
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
        "head": _head_document(model.fitted_head),
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

    Parameters
    ----------
    path
        A MODEL, as `save_model` wrote it.

    Returns
    -------
    MergedModel
        The model; its golden samples stay on disk (`featcache.model.golden.Golden.load`).

    Raises
    ------
    MissingError
        Where there is none.
    FormatError
        For another format or version.
    CorruptError
        Where a file does not have the digest that ``model.json`` states, or is not what `save_model` wrote.

    Examples
    --------
    >>> load_model("model").classes
    ('cat', 'dog')
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    document = read_model_json(path)
    try:
        data = _checked_bytes(path, WEIGHTS_FILE, document)
        quantization = None
        if QUANT_FILE in document["sha256"]:
            text = _checked_bytes(path, QUANT_FILE, document)
            quantization = Quantization.from_json(parse_document(text, _QUANT_DOCUMENT, place=Path(path) / QUANT_FILE))
        stored = load(data)
        halves = any(tensor.dtype == torch.float16 for tensor in stored.values())
        tensors = {name: t.float() if t.dtype == torch.float16 else t for name, t in stored.items()}
        recipe = Recipe.from_json(document["recipe"])
        architecture = document["architecture"]
        surgery = Surgery(architecture["folded"], architecture["widths"])
        network = _build_network(architecture)
        surgery.apply(network)
        state = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
        backbone = wrap_network(network, recipe, outputs=architecture["outputs"])
        head = _head_from_document(document["head"], tensors, document["classes"])
        return MergedModel(
            backbone, head, recipe=recipe, surgery=surgery, quantization=quantization, halves=halves,
            lineage=document["lineage"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
        if isinstance(error, FeatcacheError) and not isinstance(error, InputError):
            raise
        raise CorruptError(f"{os.fspath(path)!r} must hold a whole model, got {error!r:.200}: {_RENEW}") from error


def _build_network(architecture: Mapping[str, Any]) -> nn.Module:
    """Return timm's network by name, as `load_backbone` makes it, with values to be loaded.

    The document may come from a stranger: only timm's own names and arguments of the network itself are taken, none
    that would fetch a network from a hub or open a checkpoint.
    """
    name = architecture["timm"]
    if ":" in name:
        raise CorruptError(f"architecture.timm in {MODEL_FILE} must be a name of timm's, got {name!r}: {_RENEW}")
    network = create_network(name, check_kwargs(dict(architecture["model_kwargs"]), keep_classifier=True))
    if "logits" not in architecture["outputs"] and getattr(network, "num_classes", None):
        reset: Any = network.reset_classifier
        reset(0)
    return network.requires_grad_(False).eval()


def read_model_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the document in ``model.json`` of directory `path`.

    Raises `MissingError`, `FormatError` and `CorruptError` as `featcache.system.json.read_document`.
    """
    return read_document(Path(path) / MODEL_FILE, _DOCUMENT)


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
    """Return what goes into the weights file: the backbone's state, the head's arrays, in half precision where so."""
    tensors = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    for name, array in model.fitted_head.arrays().items():
        tensors[f"head.{name}"] = torch.tensor(array)
    if not model.halves:
        return tensors
    # what is not exactly a half (another kind of head's arrays) stays as it is
    halved = {name: tensor.half() for name, tensor in tensors.items() if goes_in_half(tensor)}
    return {**tensors, **{name: half for name, half in halved.items() if torch.equal(half.float(), tensors[name])}}


def _timm_name(model: MergedModel) -> str:
    """Return the name under which timm builds the network without asking a hub."""
    name = model.recipe.model
    if not name.startswith("hf-hub:"):
        return name
    config: Any = getattr(model.backbone.network, "pretrained_cfg", {})
    return str(config["architecture"])


def _head_document(head: Head) -> dict[str, Any]:
    return {
        "kind": head.kind,
        "task": head.task,
        "columns": list(head.columns),
        "fingerprint": head.fingerprint,
        "settings": dict(head.settings),
        "options": head.options(),
        "calibration": None if head.calibration is None else head.calibration.to_json(),
        "unknown": None if head.unknown is None else head.unknown.to_json(),
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
    return read_member(Path(path), name, renew=_RENEW, sha256=str(document["sha256"].get(name)))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
