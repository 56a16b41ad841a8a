"""Measure every installed device format on the same photos, for a float, a pruned and an INT8 CNN and a ViT: one table.

    python scripts/bench_export.py [--only MODEL,…] [--format FORMAT,…] [--work DIR] [--json OUT] [--images DIR]

Models: mobilenetv2 (the real weights beside the checkout where they are, else random ones), its pruned and its INT8
form, and vit (vit_tiny_patch16_224 with random weights: what is compared is arithmetic, its accuracy means nothing).
Photos: clothing10's test split (372) where it is beside the checkout, else the digits (270: no agreement is stated).

Every file is exported and run by `featcache.export`, from JPEG bytes; a format that cannot take a model is a row with
its reason. Finished rows are kept in --work and not measured again (delete it to start over).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DATA = Path.home() / ".cache" / "featcache-data"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.tf_float_headless.safetensors"
MODELS = ("mobilenetv2", "mobilenetv2-pruned", "mobilenetv2-int8", "vit")
COLUMNS = ("model", "format", "executed", "n", "max diff", "agreement", "flips", "accuracy", "bytes", "ms")


def photos(work: Path, named: Path | None) -> Path:
    """Return the folder of labelled images: the one named, else clothing10, else digits made by scikit-learn."""
    if named is not None:
        return named
    folder, archive = DATA / "clothing10", SHARED / "datasets" / "clothing10.tar"
    if not folder.exists() and archive.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(DATA, filter="data")
    if folder.exists():
        return folder
    if not (work / "digits").exists():
        subprocess.run([sys.executable, str(ROOT / "scripts" / "make_digits.py"), str(work / "digits")], check=True)
    return work / "digits"


def made(place: Path, make: Callable[[Path], Any]) -> Path:
    """Return `place`, made by `make` where it is not there yet."""
    if not place.exists():
        make(place)
    return place


def base_model(images: Path, work: Path, name: str) -> tuple[Path, Path]:
    """Return (model, cache) of the network called `name` here."""
    from featcache.extract.build import build_cache
    from featcache.model.merging import merge
    from featcache.train.fit import train_head
    from featcache.train.options import LinearOptions

    backbone = "mobilenetv2_100" if name == "mobilenetv2" else "vit_tiny_patch16_224"
    weights = WEIGHTS if name == "mobilenetv2" and WEIGHTS.exists() else "random:0"
    cache = work / f"{name}-cache"
    build_cache(images, cache, backbone=backbone, weights=str(weights))

    def head_and_merge(out: Path) -> None:
        train_head(cache, head=LinearOptions(l2=0.05)).save(work / f"{name}-head", overwrite=True)
        merge(work / f"{name}-head", cache, out=out)

    return made(work / name, head_and_merge), cache


def model_called(name: str, images: Path, work: Path) -> Path:
    """Return the MODEL directory of one of `MODELS`."""
    from featcache.compression import prune, quantize

    model, cache = base_model(images, work, name.partition("-")[0])
    if name.endswith("-pruned"):
        return made(work / name, lambda out: prune(model, cache=cache, out=out, amount=0.2))
    if name.endswith("-int8"):
        return made(work / name, lambda out: quantize(model, cache=cache, out=out))
    return model


def measure(model: Path, name: str, formats: list[str], images: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Return what `export` reports of each format; all at once, or one by one where that fails."""
    from featcache.bundle.exporting import export
    from featcache.errors import FeatcacheError

    try:
        report = export(model, out=work / f"{name}-bundle", formats=formats, images=images, overwrite=True)
    except FeatcacheError as error:
        if len(formats) == 1:
            return {formats[0]: {"executed": False, "failed": str(error)}}
        alone = [measure(model, name, [one], images, work) for one in formats]
        return {key: value for found in alone for key, value in found.items() if key in formats}
    return {key: entry.to_json() for key, entry in report.formats.items()}


def row(model: str, name: str, entry: dict[str, Any]) -> list[str]:
    """Return the cells of one line of the table."""
    if "failed" in entry:
        return [model, name, f"no: {entry['failed']}"]

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    executed = "yes" if entry["executed"] else "no"
    latency = entry["latency_ms"]
    return [
        model, name, executed, str(entry["n_compared"]), shown(entry["max_abs_diff"], ".1e"),
        shown(entry["top1_agreement"], ".2%"), str(entry["disagreements"]), shown(entry["accuracy"], ".1%"),
        f"{entry['bytes']:,}", "-" if latency is None else f"{latency['median']:.1f} ({latency['threads']} thr.)",
    ]  # fmt: skip


def main() -> None:
    from featcache.formats.registry import find_target, target_names

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(MODELS), help="models, comma-separated")
    parser.add_argument("--format", default="all", dest="formats", help="device formats, comma-separated")
    parser.add_argument("--work", type=Path, default=ROOT / "bench_out" / "export")
    parser.add_argument("--images", type=Path, help="another folder of labelled images")
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "rows.json"
    results: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    wanted = target_names() if arguments.formats == "all" else arguments.formats.split(",")
    missing = {name: find_target(name).available() for name in wanted}
    for name in arguments.only.split(","):
        formats = [f for f in wanted if missing[f] is None and f"{name}/{f}" not in results]
        if formats:
            images = photos(work, arguments.images)
            found = measure(model_called(name, images, work), name, formats, images, work)
            results |= {f"{name}/{key}": entry for key, entry in found.items()}
            kept.write_text(json.dumps(results, indent=1))
    print(" | ".join(COLUMNS))
    for key, entry in sorted(results.items(), key=lambda item: MODELS.index(item[0].split("/")[0])):
        print(" | ".join(row(*key.split("/"), entry)))
    for name, reason in missing.items():
        if reason is not None:
            print(f"not installed: {name}: {reason}; {find_target(name).needs}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"rows": results, "missing": missing}, indent=1))


if __name__ == "__main__":
    main()
