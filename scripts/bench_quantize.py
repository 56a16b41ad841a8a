"""Measure what each way of making integers costs: accuracy paired on the same photos, bytes, latency.

    python scripts/bench_quantize.py [--only clothing10|tinyimagenet200|digits] [--method NAME ...] [--quick]
        [--json OUT] [--work DIR]

clothing10: mobilenetv2_100.tf_float_headless, 5 folds over all 1,905 photos: each is tested once, by a backbone
calibrated and a head fitted without it; one photo in six of the others is val.
tinyimagenet200: featcache_nano, 50 train photos of each class (--quick: 10), one of each for val, the 2,000 of its val
as test.
digits: featcache_nano on the demo's 1,797 digits, ten seeds of the split (--quick: two): mean and worst.
The methods are options of `quantize` (METHODS below). Finished parts are kept in --work and not measured again; delete
it to start over. Latencies are of one image and one thread, float and INT8 in turns; what else the machine does falls
on both alike.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_compress import DATA, FOLDS, WEIGHTS, Row, photos, tiny_rows, unpacked, write_table
from make_digits import write_digits

METHODS: dict[str, dict[str, Any]] = {
    "ptq": {},
    "ptq-vnni": {"processor": "vnni"},
    "qat": {"method": "qat"},
    "fp16": {"precision": "fp16"},
    "max-error": {"max_error": 0.01},
}
DATASETS = ("digits", "tinyimagenet200", "clothing10")
SEEDS = 10
QUICK_SEEDS = 2
QUICK_PER_CLASS = 10
TIMED_SECONDS = 2.0  # of latency, for each file


@dataclass(frozen=True)
class Part:
    """One split of one data set: what `build_cache` is told, and the place of its cache, shared by the splits."""

    name: str
    cache: Path
    images: Path
    build: dict[str, Any]
    rows: list[Row] | None = None


def fold_rows(folder: Path, fold: int) -> list[Row]:
    """Return all photos with one fold as test, and one in six of the others as val, stratified."""
    by_class: dict[str, list[str]] = {}
    for path, label in (entry for split in ("train", "val", "test") for entry in photos(folder, split)):
        by_class.setdefault(label, []).append(path)
    generator = np.random.default_rng(0)
    rows: list[Row] = []
    for label, paths in sorted(by_class.items()):
        for place, index in enumerate(generator.permutation(len(paths))):
            held_out = "test" if place % FOLDS == fold else "val" if place // FOLDS % 6 == 0 else "train"
            rows.append((paths[index], label, held_out))
    return rows


def parts_of(dataset: str, work: Path, *, quick: bool) -> Iterator[Part]:
    """Yield the splits of a data set."""
    cache = work / f"{dataset}-cache"
    if dataset == "digits":
        write_digits(work / "digits")
        for seed in range(QUICK_SEEDS if quick else SEEDS):
            yield Part(f"digits-{seed}", cache, work / "digits", {"backbone": "featcache_nano", "split_seed": seed})
    elif dataset == "tinyimagenet200":
        folder = unpacked("tinyimagenet200_40k.tar.gz")
        rows = tiny_rows(folder, per_class=QUICK_PER_CLASS) if quick else tiny_rows(folder)
        yield Part("tinyimagenet200-quick" if quick else "tinyimagenet200", cache, folder,
                   {"backbone": "featcache_nano"}, rows)  # fmt: skip
    else:
        folder = unpacked("clothing10.tar")
        for fold in range(1 if quick else FOLDS):
            yield Part(f"clothing10-{fold}", cache, folder, {"backbone": "mobilenetv2_100", "weights": WEIGHTS},
                       fold_rows(folder, fold))  # fmt: skip


def measure(part: Part, methods: list[str], work: Path) -> dict[str, dict[str, Any]]:
    """Return what each method gives on one split, by name; what is on disk already is read, not measured."""
    import featcache
    from featcache.extract.build import build_cache

    files = {name: work / f"{part.name}-{name}.json" for name in methods}
    if not all(file.exists() for file in files.values()):
        place = work / part.name
        images = part.images if part.rows is None else write_table(part.images, part.name, part.rows)
        build_cache(images, part.cache, dataset="bench", **part.build)
        featcache.train_head(part.cache).save(place / "head", overwrite=True)
        featcache.merge(place / "head", part.cache, out=place / "float", golden="none", overwrite=True)
        for name, file in files.items():
            if not file.exists():
                started = time.perf_counter()
                result = featcache.quantize(
                    place / "float", cache=part.cache, out=place / name, overwrite=True, **METHODS[name]
                )
                found = {"wall_seconds": time.perf_counter() - started, **speeds(place / "float", place / name)}
                file.write_text(json.dumps({**result.to_json(), **found}))
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def speeds(exact: Path, rough: Path) -> dict[str, Any]:
    """Return the latencies in ms of two models in each runtime that is installed, and the second's Q/DQ pairs."""
    from featcache.engines.session import open_session
    from featcache.graph.write import write_onnx
    from featcache.model.directory import load_model

    with tempfile.TemporaryDirectory() as folder:
        graphs = [write_onnx(load_model(model), Path(folder) / f"{model.name}.onnx") for model in (exact, rough)]
        kinds = [node.op_type for node in onnx.load(str(graphs[1])).graph.node]
        sessions = [open_session(graph, threads=1) for graph in graphs]
        shape = (1, *sessions[0].get_inputs()[0].shape[1:])
        found = {
            "onnxruntime_ms": in_turns([lambda image, s=s: s.run(None, {"image": image}) for s in sessions], shape)
        }
        if importlib.util.find_spec("openvino"):
            from featcache.engines.openvino_core import openvino_core

            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
            compiled = [openvino_core().compile_model(str(graph), "CPU", hints) for graph in graphs]
            requests = [model.create_infer_request() for model in compiled]
            found["openvino_ms"] = in_turns([lambda image, r=r: r.infer({"image": image}) for r in requests], shape)
    return {**found, "quantize_linear": kinds.count("QuantizeLinear")}


def in_turns(runs: list[Any], shape: tuple[int, ...]) -> list[float]:
    """Return the median ms of each of `runs` on one image, called in turns."""
    image = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + TIMED_SECONDS * len(runs)
    while time.perf_counter() < end or len(times[0]) < 20:
        for run, taken in zip(runs, times, strict=True):
            before = time.perf_counter()
            run(image)
            taken.append(1e3 * (time.perf_counter() - before))
    return [statistics.median(taken[5:]) for taken in times]


def summary(dataset: str, method: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracies over all parts, the paired flips and how probable they are by chance, bytes and speeds."""
    from featcache.compression.keeping import sign_test

    n = [part["n"] for part in parts]
    drops = [100 * (part["accuracy_float"] - part["accuracy_after_refit"]) for part in parts]
    gained, lost = (sum(part[key] for part in parts) for key in ("gained", "lost"))

    def mean(key: str) -> float:
        return float(np.average([part[key] for part in parts], weights=n))

    def middle(key: str) -> list[float] | None:
        return [statistics.median(part[key][i] for part in parts) for i in (0, 1)] if key in parts[0] else None

    return {
        "dataset": dataset, "method": method, "parts": len(parts), "n": sum(n),
        "float_accuracy": mean("accuracy_float"), "before_refit": mean("accuracy_before_refit"),
        "accuracy": mean("accuracy_after_refit"), "lost_points": float(np.average(drops, weights=n)),
        "worst_lost_points": max(drops), "gained": gained, "lost": lost, "p": sign_test(gained, lost),
        "refits_kept": sum(part["refit_kept"] for part in parts),
        "bytes": [parts[0]["bytes_before"], parts[0]["bytes_after"]],
        "onnxruntime_ms": middle("onnxruntime_ms"), "openvino_ms": middle("openvino_ms"),
        "quantize_linear": parts[0]["quantize_linear"], "wall_seconds": sum(part["wall_seconds"] for part in parts),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """Return one row of the table for people."""
    speed = ", ".join(
        f"{name} {row[key][0]:.2f} → {row[key][1]:.2f} ms"
        for name, key in (("ONNX Runtime", "onnxruntime_ms"), ("OpenVINO", "openvino_ms"))
        if row[key]
    )
    return (
        f"{row['dataset']:16} {row['method']:9} {100 * row['float_accuracy']:.2f} → {100 * row['accuracy']:.2f} % of "
        f"{row['n']} (before the refit {100 * row['before_refit']:.2f}): {row['lost_points']:+.2f} points lost, worst "
        f"of {row['parts']} {row['worst_lost_points']:+.2f}; float alone right {row['lost']}, INT8 {row['gained']} "
        f"(p = {row['p']:.2g}); refits kept {row['refits_kept']}; {row['bytes'][0] / row['bytes'][1]:.2f}x smaller; "
        f"{speed}; {row['quantize_linear']} QuantizeLinear; {row['wall_seconds']:.0f} s"
    )


def main() -> None:
    from featcache.system.processor import processor_has_int8, processor_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATASETS)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=DATA / "bench_quantize")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    processor = f"{processor_name()}, {'with' if processor_has_int8() else 'without'} VNNI"
    print(processor)
    rows = []
    for dataset in DATASETS if arguments.only is None else (arguments.only,):
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.method}
        for part in parts_of(dataset, arguments.work, quick=arguments.quick):
            for name, result in measure(part, arguments.method, arguments.work).items():
                found[name].append(result)
        for name, results in found.items():
            rows.append(summary(dataset, name, results))
            print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"processor": processor, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
