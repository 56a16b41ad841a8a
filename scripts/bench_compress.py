"""Measure what INT8 costs in accuracy, from JPEG bytes through the float and the INT8 bundle, on the same photos.

    python scripts/bench_compress.py [--only tinyimagenet200|clothing10|digits] [--json OUT] [--work DIR]
        [--option NAME=VALUE]

tinyimagenet200: 10,000 train photos (50 of each class), the 2,000 val photos as test; l2 = 0.1 (scikit-learn's
C = 1e-3).
clothing10: 5 folds over all 1,905 photos, stratified; each photo is tested once, by a backbone calibrated and a head
fitted without it; C = 0.01. The backbone is mobilenetv2_100.tf_float_headless, whose weights were never quantized.
digits: scikit-learn's 1,797 through `run` and the embedded backbone, as in scripts/demo; its models on the test split.
Finished parts are kept in --work and not measured again (delete it to start over); --option goes to `quantize`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
DATA = Path.home() / ".cache" / "featcache-data"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.tf_float_headless.safetensors"
FOLDS = 5
TINY_PER_CLASS = 50

Row = tuple[str, str, str]  # path, label, split


def unpacked(archive: str) -> Path:
    """Return the folder of an archive of ../shared, unpacked once; leave with a word where it is absent."""
    folder = DATA / archive.split(".")[0]
    if not folder.exists():
        source = SHARED / "datasets" / archive
        if not source.exists():
            sys.exit(f"{source} is not there: the photos beside the checkout are needed")
        DATA.mkdir(parents=True, exist_ok=True)
        with tarfile.open(source) as tar:
            tar.extractall(DATA, filter="data")
    return folder


def photos(folder: Path, split: str) -> list[tuple[str, str]]:
    """Return (path relative to `folder`, class) of every photo of one split, sorted by class and name."""
    return [(file.relative_to(folder).as_posix(), file.parent.name) for file in sorted((folder / split).glob("*/*"))]


def tiny_rows(folder: Path, *, per_class: int = TINY_PER_CLASS) -> list[Row]:
    """Return the first train photos of each class as train, the next one as val, and all val photos as test."""
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for path, label in photos(folder, "train"):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class + 1:
            rows.append((path, label, "train" if seen[label] <= per_class else "val"))
    return rows + [(path, label, "test") for path, label in photos(folder, "val")]


def fold_rows(folder: Path, fold: int) -> list[Row]:
    """Return all photos with one fold as test; one photo of each class is val, so that no more are taken from train."""
    everything = [entry for split in ("train", "val", "test") for entry in photos(folder, split)]
    by_class: dict[str, list[str]] = {}
    for path, label in everything:
        by_class.setdefault(label, []).append(path)
    generator = np.random.default_rng(0)
    rows: list[Row] = []
    for label, paths in sorted(by_class.items()):
        order = generator.permutation(len(paths))
        splits = ["test" if position % FOLDS == fold else "train" for position in range(len(paths))]
        splits[splits.index("train")] = "val"
        rows += [(paths[index], label, split) for index, split in zip(order, splits, strict=True)]
    return rows


def write_table(folder: Path, name: str, rows: list[Row]) -> Path:
    """Write `rows` as a table of samples in `folder`, and return it."""
    table = folder / f".bench_{name}.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return table


def right(bundle: Path, folder: Path, rows: Iterable[Row]) -> tuple[list[str], np.ndarray]:
    """Return the test photos and whether the bundle names the class of each, from the bytes of its file."""
    from featcache import predict

    tested = [(path, label) for path, label, split in rows if split == "test"]
    found = predict(bundle, [folder / path for path, _ in tested], top=1)
    answers = zip(found, tested, strict=True)
    return [path for path, _ in tested], np.array([guess.label == label for guess, (_, label) in answers])


def measure(
    name: str, folder: Path, rows: list[Row], *, l2: float, work: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what one split of one data set gives: which test photos the float and the INT8 bundle get right."""
    from featcache.bundle.exporting import export
    from featcache.compression import quantize
    from featcache.extract.build import build_cache
    from featcache.model.merging import merge
    from featcache.train.fit import train_head
    from featcache.train.options import LinearOptions

    done = work / f"{name}.json"
    if done.exists():
        return json.loads(done.read_text())
    started = time.perf_counter()
    place = work / name
    table = write_table(folder, name, rows)
    cache = work / f"{name.partition('-')[0]}-cache"  # the folds share their rows: only the samples differ
    build_cache(table, cache, backbone="mobilenetv2_100", weights=WEIGHTS, dataset="bench")
    train_head(cache, head=LinearOptions(l2=l2)).save(place / "head", overwrite=True)
    merge(place / "head", cache, out=place / "float", golden="synthetic", overwrite=True)
    result = quantize(place / "float", cache=cache, out=place / "int8", overwrite=True, **options)
    correct = {}
    for kind in ("float", "int8"):
        export(place / kind, out=place / f"{kind}-bundle", overwrite=True)
        tested, correct[kind] = right(place / f"{kind}-bundle", folder, rows)
    found = {
        "name": name,
        "tested": tested,
        "float": correct["float"].tolist(),
        "int8": correct["int8"].tolist(),
        "quantize": result.to_json(),
        "wall_seconds": time.perf_counter() - started,
    }
    done.write_text(json.dumps(found))
    table.unlink()
    return found


def summary(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the accuracies over all parts, the paired flips, and the mean of the refit's own figures."""
    exact, rough = (np.concatenate([part[kind] for part in parts]).astype(bool) for kind in ("float", "int8"))
    steps = [part["quantize"] for part in parts]
    weights = np.array([step["n"] for step in steps])

    def mean(key: str) -> float:
        return float(np.average([step[key] for step in steps], weights=weights))

    return {
        "name": name,
        "n": len(exact),
        "float_accuracy": float(exact.mean()),
        "int8_accuracy": float(rough.mean()),
        "lost_points": 100 * float(exact.mean() - rough.mean()),
        "only_float_right": int((exact & ~rough).sum()),
        "only_int8_right": int((rough & ~exact).sum()),
        "cached_float_accuracy": mean("accuracy_float"),
        "before_refit": mean("accuracy_before_refit"),
        "after_refit": mean("accuracy_after_refit"),
        "bytes_float": steps[0]["bytes_before"],
        "bytes_int8": steps[0]["bytes_after"],
        "latency_ms_float": mean("latency_ms_before"),
        "latency_ms_int8": mean("latency_ms_after"),
        "integer_convolutions": [steps[0]["integer_convolutions"], steps[0]["convolutions"]],
        "wall_seconds": sum(part["wall_seconds"] for part in parts),
    }


def print_digits(work: Path) -> None:
    """Print the accuracy of the float, the pruned and the INT8 model of the demo's digits, and which of them ships."""
    from make_digits import write_digits

    import featcache

    write_digits(work / "digits")
    report = featcache.run(work / "digits", out=work / "digits-run", overwrite=True)
    for row in report.table:
        accuracy = "not run" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %"
        print(f"digits: {row['model']}: {accuracy}, {row['bytes']} bytes, {row['latency_ms']} ms")
    print(f"digits: the bundle holds {report.shipped}", *report.notes, sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["tinyimagenet200", "clothing10", "digits"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=DATA / "bench_compress")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    options = {name: json.loads(value) for name, _, value in (entry.partition("=") for entry in arguments.option)}
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = []
    if arguments.only in (None, "digits"):
        print_digits(arguments.work)
    if arguments.only in (None, "tinyimagenet200"):
        folder = unpacked("tinyimagenet200_40k.tar.gz")
        rows = tiny_rows(folder)
        part = measure("tinyimagenet200", folder, rows, l2=0.1, work=arguments.work, options=options)
        found.append(summary("tinyimagenet200", [part]))
    if arguments.only in (None, "clothing10"):
        folder = unpacked("clothing10.tar")
        parts = []
        for fold in range(FOLDS):
            rows = fold_rows(folder, fold)
            l2 = 100 / sum(split == "train" for _, _, split in rows)
            parts.append(measure(f"clothing10-{fold}", folder, rows, l2=l2, work=arguments.work, options=options))
        found.append(summary("clothing10", parts))
    for entry in found:
        print(
            f"{entry['name']}: float {100 * entry['float_accuracy']:.2f} %, INT8 {100 * entry['int8_accuracy']:.2f} % "
            f"of {entry['n']} photos: {entry['lost_points']:+.2f} points lost ({entry['only_float_right']} only float, "
            f"{entry['only_int8_right']} only INT8 right); before the refit {100 * entry['before_refit']:.2f} %; "
            f"{entry['bytes_float'] / entry['bytes_int8']:.2f}x smaller, latency {entry['latency_ms_float']:.2f} → "
            f"{entry['latency_ms_int8']:.2f} ms"
        )
    document = json.dumps({"options": options, "results": found}, indent=1)
    if arguments.json:
        arguments.json.write_text(document + "\n")


if __name__ == "__main__":
    main()
