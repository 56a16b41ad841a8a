"""The bytes of device files, kept: changing the code between a MODEL and its files changes none of them unnoticed.

The weights are arithmetic, the same on every machine, and nothing of it is calibrated. Another version of a tool
may write other bytes, so each digest is kept with the versions that made it. After a change that is meant:
``PYTHONPATH=. python tests/formats/test_kept_digests.py`` writes the digests of this machine's tools anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import featcache
from featcache.formats.registry import find_target, target_names
from featcache.model.directory import save_model
from featcache.model.merged import MergedModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export_models import small_model

KEPT = Path(__file__).parent / "kept_digests.json"
_WRITERS = ("torch", "timm", "onnx", "onnxslim")  # of the graph that every format is made from
_TOOLS = {
    "openvino": ("openvino",), "coreml": ("coremltools",), "ncnn": ("pnnx",),
}  # fmt: skip
_INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"}
_OF_THE_MACHINE = ("golden/", "manifest.json", "report.json")  # logits, their digests, measurements


def arithmetic(shape: torch.Size, *, salt: int, low: float, high: float) -> torch.Tensor:
    """Return float32 values between `low` and `high` by Knuth's multiplicative hash of their positions."""
    positions = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(salt)
    fractions = (positions * np.uint64(2654435761) % np.uint64(1 << 32)).astype(np.float64) / (1 << 32)
    return torch.from_numpy((low + (high - low) * fractions).astype(np.float32).reshape(shape))


def arithmetic_model() -> MergedModel:
    """Return a small convolutional network with a linear head, every weight of which is arithmetic."""
    model = small_model(classes=("cat", "dog", "owl"))
    with torch.no_grad():
        for salt, (name, tensor) in enumerate(sorted(model.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            reach = 1.7 / float(max(1, np.prod(tensor.shape[1:]))) ** 0.5 if tensor.ndim > 1 else 0.3
            low, high = (0.7, 1.3) if name.endswith("running_var") else (-reach, reach)
            middle = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(middle + arithmetic(tensor.shape, salt=1000 * salt, low=low, high=high))
    return model


def digests_of(name: str, model: Path, folder: Path) -> dict[str, str]:
    """Return ``{file: sha256}`` of what `export` writes for one format, less what belongs to the machine."""
    bundle = folder / name
    featcache.export(model, out=bundle, formats=[name])
    files = {path.relative_to(bundle).as_posix(): path for path in sorted(bundle.rglob("*")) if path.is_file()}
    return {
        file: hashlib.sha256(path.read_bytes()).hexdigest()
        for file, path in files.items()
        if not file.startswith(_OF_THE_MACHINE)
    }


def versions_of(name: str) -> dict[str, str]:
    """Return the versions of what writes the files of a format; its runtime does not count."""
    target = find_target(name)
    found = {package: importlib.metadata.version(package) for package in (*_WRITERS, *_TOOLS.get(name, ()))}
    if target.environment is not None:
        found["tools"] = target.version()
    # converters, and torch where it folds norms, compute weights in whatever instructions the processor has
    listing = Path("/proc/cpuinfo")
    flags = set(listing.read_text(encoding="utf-8").split()) if listing.exists() else set()
    return {**found, "instructions": " ".join(sorted(_INSTRUCTIONS & flags))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arithmetic model as a MODEL directory."""
    return save_model(arithmetic_model(), tmp_path_factory.mktemp("kept") / "model")


@pytest.mark.target
@pytest.mark.parametrize("name", target_names())
def test_files_of_a_format_are_the_bytes_kept(name: str, saved: Path, tmp_path: Path) -> None:
    """One MODEL, exported now and when the digests were kept, gives the same files."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    if name not in kept:
        pytest.skip(f"{name}: no digest of it was kept, its tools were not at hand")
    reason = find_target(name).available()
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    versions = versions_of(name)
    if versions != kept[name]["versions"]:
        pytest.skip(f"{name}: kept with {kept[name]['versions']}, here are {versions}")
    assert digests_of(name, saved, tmp_path) == kept[name]["files"]


def write_kept() -> None:
    """Write the digests of every format whose tools are installed here."""
    kept = {}
    with tempfile.TemporaryDirectory() as place:
        model = save_model(arithmetic_model(), Path(place) / "model")
        for name in target_names():
            if find_target(name).available() is None:
                kept[name] = {"versions": versions_of(name), "files": digests_of(name, model, Path(place))}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_kept()
