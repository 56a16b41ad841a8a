"""The directory MODEL: a `MergedModel` saved, loaded and checked.

    MODEL/model.json            architecture (with pruned widths), Recipe, classes, head, lineage, digests of the files
    MODEL/weights.safetensors   every parameter and buffer, by name
    MODEL/quant.json            where quantized: scale, zero point, signedness and axis of each tensor
    MODEL/tokenizer.json        of texts: how they become token ids
    MODEL/golden/               JPEGs or texts and the logits they must give (`featcache.model.golden`)

Nothing is pickled: the network is built again as ``model.json`` says, by timm's name or transformers' configuration,
folded and narrowed, and the tensors are loaded into it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from featcache.errors import CorruptError, FeatcacheError, InputError
from featcache.heads import Head, head_class
from featcache.heads.calibration import Calibration
from featcache.heads.unknown import UnknownRule
from featcache.model.description import FORMAT, MODEL_FILE, RENEW, VERSION, read_model_json
from featcache.model.golden import Golden
from featcache.model.halves import goes_in_half
from featcache.model.kinds import model_kind
from featcache.model.merged import MergedModel
from featcache.model.quantization import Quantization
from featcache.model.surgery import Surgery
from featcache.recipe import Recipe, preprocessing_to_json
from featcache.system.files import new_directory
from featcache.system.json import DocumentKind, parse_document
from featcache.system.members import read_member

WEIGHTS_FILE, QUANT_FILE, GOLDEN_FOLDER = "weights.safetensors", "quant.json", "golden"
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
    files = {WEIGHTS_FILE: save(tensors), **model.assets}
    if model.quantization is not None:
        files[QUANT_FILE] = _json_bytes(model.quantization.to_json())
    document = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": {
            **model_kind(model.recipe.input).architecture(model),
            "outputs": list(model.backbone.outputs),
            **model.surgery.to_json(),
        },
        "recipe": model.recipe.to_json(),
        "model_digest": model.recipe.model_digest,
        "classes": list(model.classes),
        "preprocessing": preprocessing_to_json(model.recipe.preprocessing),
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
        kind = model_kind(recipe.input)
        network = kind.build_network(architecture)
        surgery.apply(network)
        assets = {name: _checked_bytes(path, name, document) for name in kind.asset_names}
        state = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
        backbone = kind.wrap(network, recipe, outputs=tuple(architecture["outputs"]), assets=assets)
        head = _head_from_document(document["head"], tensors, document["classes"])
        return kind.merged(
            backbone, head, recipe=recipe, surgery=surgery, quantization=quantization, halves=halves,
            lineage=document["lineage"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, RuntimeError) as error:
        if isinstance(error, FeatcacheError) and not isinstance(error, InputError):
            raise
        raise CorruptError(f"{os.fspath(path)!r} must hold a whole model, got {error!r:.200}: {RENEW}") from error


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
    return read_member(Path(path), name, renew=RENEW, sha256=str(document["sha256"].get(name)))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
