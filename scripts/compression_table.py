"""Print what each step of compression costs and buys as a Markdown table, from the files that the benchmarks wrote.

    python scripts/compression_table.py RESULTS.json...

RESULTS: of scripts/bench_prune.py and scripts/bench_quantize.py (--json), or what `featcache compress --json` printed.
Flips are photos that only the float model or only the smaller one gets right; p is McNemar's exact test of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HEAD = ("step", "photos", "accuracy, %", "flips (p)", "MB", "time left in ONNX Runtime, OpenVINO")


def rows_of(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of one file."""
    if "results" in document:
        return [benchmark_row(row) for row in document["results"] if "error" not in row and not unknown(row)]
    return [search_row(document)]


def unknown(row: dict[str, Any]) -> bool:
    """Return whether the accuracy of a row means nothing."""
    return bool(row.get("random_weights"))


def benchmark_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of what was measured over all splits of a data set."""
    name = row.get("name", row["method"])
    if "macs" in row:
        minutes = name.partition("-")[2].partition("-")[2]  # "ours-0.5-4min"
        kept = f"{row['macs'][1] / row['macs'][0]:.0%} of the multiplications"
        peer = ", Torch-Pruning's choice" if row["method"] == "peer" else ""
        name = kept + (f", {minutes.removesuffix('min')} minutes of training" if minutes else "") + peer
    left = [row[key] for key in ("onnxruntime_ms", "openvino_ms")]
    return (
        name,
        f"{row['dataset']}, {row['n']:,}",
        f"{100 * row['float_accuracy']:.2f} → {100 * row['accuracy']:.2f}",
        f"{row['lost']}, {row['gained']} ({row['p']:.2g})",
        megabytes(*row["bytes"]),
        ", ".join("-" if times is None else f"{times[1] / times[0]:.2f}" for times in left),
    )


def search_row(found: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of one `compress`."""
    from featcache.compression.keeping import sign_test

    gained, lost = found["gained"], found["lost"]
    return (
        f"compress --max-drop {found['max_drop']:g} --target {found['target']}: {' + '.join(found['chosen']['steps'])}",
        f"{found['split']}, {found['n']:,}",
        f"{100 * found['accuracy_float']:.2f} → {100 * found['accuracy_after_refit']:.2f}",
        f"{lost}, {gained} ({sign_test(gained, lost):.2g})",
        megabytes(found["bytes_before"], found["bytes_after"]),
        f"{found['latency_ms_after'] / found['latency_ms_before']:.2f}, -",
    )


def megabytes(before: int, after: int) -> str:
    """Return the bytes of a file before and after."""
    return f"{before / 1e6:.2f} → {after / 1e6:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    documents = [json.loads(file.read_text()) for file in parser.parse_args().results]
    for processor in dict.fromkeys(document["processor"] for document in documents if "processor" in document):
        print(f"Measured on {processor}.\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    seen: dict[tuple[str, ...], None] = dict.fromkeys(row for document in documents for row in rows_of(document))
    for row in seen:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
