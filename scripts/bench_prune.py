"""Measure what fewer channels cost and save, ours against Torch-Pruning's choice at equal multiplications.

    python scripts/bench_prune.py [--only clothing10|tinyimagenet200|structures] [--left 0.9 0.7 0.5] [--folds 5]
        [--method ours peer] [--minutes M] [--quick] [--json OUT] [--work DIR]

clothing10: mobilenetv2_100.tf_float_headless, folds over all 1,905 photos (--folds: how many of the five): each photo
is tested once, by a backbone pruned and a head fitted without it; one photo in six of the others is val.
tinyimagenet200: featcache_nano (a MobileNetV3), 50 train photos of each class, one for val, the 2,000 of its val as
test.
structures: EfficientNet-lite0, ResNet-18 and a ViT of random weights on photos drawn here: what goes and how much
faster that is; their accuracies mean nothing.
Both methods keep the features' width and get the same refit; with --minutes, also the same recovery before it (no other
training). The peer is scripts/peers/prune_torch_pruning.py. Accuracy: float, old head on the pruned backbone, refitted
head, on the same photos. Latencies are of one image and one thread, float and pruned in turns; what else the machine
does falls on both alike. Finished parts are kept in --work and not measured again (delete it to start over).
--quick: drawn photos, a small network of random weights, seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import bench_quantize
import torch
from bench_compress import DATA, FOLDS, write_table
from bench_quantize import Part, in_turns, parts_of, speeds, summary
from bench_recover import draw_photos, say
from peers import prune_torch_pruning

from featcache.compression.channels import Narrowing

DATASETS = ("clothing10", "tinyimagenet200", "structures")
STRUCTURES = ("efficientnet_lite0", "resnet18", "vit_tiny_patch16_224")
METHODS = ("ours", "peer")
LEFT = (0.9, 0.7, 0.5)  # of the multiplications
_REMOVE = "featcache.compression.pruning.remove_channels"

Remove = Callable[..., Narrowing]


def parts(dataset: str, work: Path, *, folds: int) -> Iterator[Part]:
    """Yield the splits of a data set, or the networks of which only the structure is looked at."""
    if dataset in ("structures", "quick"):
        if not (work / "photos").exists():
            draw_photos(work / "photos")
        for backbone in STRUCTURES if dataset == "structures" else ("test_efficientnet",):
            build = {"backbone": backbone, "weights": "random:0"}
            yield Part(backbone, work / f"{backbone}-cache", work / "photos", build)
    else:
        yield from itertools.islice(parts_of(dataset, work, quick=False), folds)


def measure(part: Part, names: dict[str, dict[str, Any]], work: Path) -> dict[str, dict[str, Any]]:
    """Return what each way of `names` gives on one split; what is on disk already is read, not measured."""
    import featcache
    from featcache.extract.build import build_cache

    files = {name: work / f"{part.name}-{name}.json" for name in names}
    if not all(file.exists() for file in files.values()):
        place = work / part.name
        images = part.images if part.rows is None else write_table(part.images, part.name, part.rows)
        build_cache(images, part.cache, dataset="bench", **part.build)
        if not (place / "float").exists():
            featcache.train_head(part.cache).save(place / "head", overwrite=True)
            featcache.merge(place / "head", part.cache, out=place / "float", golden="none", overwrite=True)
        for name, file in files.items():
            if not file.exists():
                say(f"{part.name} {name}")
                found = measured(place, name, part.cache, **names[name])
                file.write_text(json.dumps(found, indent=1) + "\n")
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def measured(place: Path, name: str, cache: Path, *, method: str, left: float, minutes: float) -> dict[str, Any]:
    """Return the accuracies, costs and speeds of the model in `place` pruned in one way; or why it cannot be."""
    from featcache import prune
    from featcache.compression import channels
    from featcache.errors import InputError
    from featcache.model.directory import load_model

    started, seconds = time.perf_counter(), [0.0]
    remove = channels.remove_channels if method == "ours" else prune_torch_pruning.remove_channels
    untrained = place.parent / f"{place.name}-{method}-{left:g}.json"
    if minutes and untrained.exists() and "error" not in (first := json.loads(untrained.read_text())):
        network = load_model(first["model"]).backbone.network  # the same network, not chosen again
        seconds = [first["prune_seconds"]]
        remove = lambda *_, **__: Narrowing(network, {}, float("nan"))  # noqa: E731
    try:
        with mock.patch(_REMOVE, timed(remove, seconds)):
            result = prune(
                place / "float", cache=cache, out=place / name, amount=1 - left, overwrite=True,
                recover=minutes if minutes else "off", say=say,
            )  # fmt: skip
    except InputError as error:
        return {"error": str(error)}
    return {
        **result.to_json(),
        "prune_seconds": seconds[0],
        "parameters_before": load_model(place / "float").parameter_count(),
        "torch_ms": torch_speeds([place / "float", place / name]),
        **speeds(place / "float", place / name),
        "wall_seconds": time.perf_counter() - started,
    }


def timed(remove: Remove, seconds: list[float]) -> Remove:
    """Return `remove`, with its time added to `seconds`."""

    def run(*arguments: Any, **options: Any) -> Narrowing:
        before = time.perf_counter()
        result = remove(*arguments, **options)
        seconds[0] += time.perf_counter() - before
        return result

    return run


def torch_speeds(places: list[Path]) -> list[float]:
    """Return the latencies in ms of models in torch eager, one image and one thread, in turns."""
    from featcache.model.directory import load_model

    models = [load_model(place).eval() for place in places]
    size = models[0].preprocessing
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            runs = [lambda image, model=model: model(torch.from_numpy(image)) for model in models]
            return in_turns(runs, (1, size.height, size.width, 3))
    finally:
        torch.set_num_threads(threads)


def row_of(dataset: str, name: str, method: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures over all parts: accuracies and flips summed, costs of the first, speeds' medians."""
    error = next((part["error"] for part in found if "error" in part), None)
    if error is not None:
        return {"dataset": dataset, "name": name, "method": method, "error": error}
    row = summary(dataset, method, found)
    del row["quantize_linear"]
    first = found[0]
    return {
        **row,
        "name": name,
        "macs": [first["macs_before"], first["macs"]],
        "parameters": [first["parameters_before"], first["parameters"]],
        "torch_ms": [statistics.median(part["torch_ms"][i] for part in found) for i in (0, 1)],
        "prune_seconds": statistics.median(part["prune_seconds"] for part in found),
        "random_weights": first["random_weights"],
    }


def line(row: dict[str, Any]) -> str:
    """Return one row of the table for people."""
    if "error" in row:
        return f"{row['dataset']} {row['name']}: {row['error']}"
    runtimes = (("torch", "torch_ms"), ("ONNX Runtime", "onnxruntime_ms"), ("OpenVINO", "openvino_ms"))
    speed = ", ".join(f"{name} {row[key][0]:.2f} → {row[key][1]:.2f} ms" for name, key in runtimes if row[key])
    accuracy = (
        "random weights"
        if row["random_weights"]
        else f"{100 * row['float_accuracy']:.2f} → {100 * row['accuracy']:.2f} % of {row['n']} (before the refit "
        f"{100 * row['before_refit']:.2f}): {row['lost_points']:+.2f} points lost, worst of {row['parts']} "
        f"{row['worst_lost_points']:+.2f}; float alone right {row['lost']}, pruned {row['gained']} (p = {row['p']:.2g})"
    )
    macs, parameters, size = row["macs"], row["parameters"], row["bytes"]
    return (
        f"{row['dataset']:16} {row['name']:12} {accuracy}; {100 * macs[1] / macs[0]:.1f} % of {macs[0] / 1e6:.0f} M "
        f"MACs, {100 * parameters[1] / parameters[0]:.1f} % of {parameters[0] / 1e6:.2f} M parameters, "
        f"{size[0] / 1e6:.2f} → {size[1] / 1e6:.2f} MB; {speed}; pruned in {row['prune_seconds']:.0f} s"
    )


def main() -> None:
    """Prune in every way, print the table."""
    from featcache.system.processor import processor_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATASETS)
    parser.add_argument("--left", nargs="+", type=float, default=list(LEFT))
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=DATA / "bench_prune")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.left = [0.7]
        bench_quantize.TIMED_SECONDS = 0.2
    ways: dict[str, dict[str, Any]] = {}
    for minutes in sorted({0.0, arguments.minutes}):
        for left, method in itertools.product(arguments.left, arguments.method):
            name = f"{method}-{left:g}" + (f"-{minutes:g}min" if minutes else "")
            ways[name] = {"method": method, "left": left, "minutes": minutes}
    work = arguments.work / "quick" if arguments.quick else arguments.work
    work.mkdir(parents=True, exist_ok=True)
    print(processor_name())
    rows: list[dict[str, Any]] = []
    for dataset in ("quick",) if arguments.quick else (arguments.only,) if arguments.only else DATASETS:
        measurements = {part.name: measure(part, ways, work) for part in parts(dataset, work, folds=arguments.folds)}
        networks = [[name] for name in measurements] if dataset in ("structures", "quick") else [list(measurements)]
        for names, (way, settings) in itertools.product(networks, ways.items()):
            label = names[0] if len(networks) > 1 or dataset == "quick" else dataset
            rows.append(row_of(label, way, settings["method"], [measurements[name][way] for name in names]))
            print(line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"processor": processor_name(), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
