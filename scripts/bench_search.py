"""Measure what `compress` finds within its budget: how much smaller and faster, in which time, what it costs.

    python scripts/bench_search.py [--target size|latency] [--max-drop 0.01] [--max-minutes 40] [--quick] [--json OUT]
        [--work DIR]

clothing10 with its own splits and mobilenetv2_100.tf_float_headless. The peer of latency is the program that most
people have: the float network and its head in torch, eager, one image at a time; it, the float graph and what was
chosen run in turns, in ONNX Runtime and OpenVINO, on all processors. Killed, it goes on where it was with the same
--work. --quick: drawn photos, a small network of random weights, a minute.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from bench_compress import DATA, WEIGHTS, unpacked
from bench_quantize import in_turns
from bench_recover import draw_photos, say

from featcache import build_cache, compress, merge, train_head
from featcache.engines.session import open_session
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model
from featcache.system.processor import processor_name
from featcache.system.threads import processor_count


def float_model(work: Path, *, quick: bool) -> tuple[Path, Path]:
    """Return (the float MODEL, its cache), made where they are not there yet."""
    cache, model = work / "cache", work / "float"
    if quick:
        photos, build = work / "photos", {"backbone": "test_efficientnet", "weights": "random:0"}
        if not photos.exists():
            draw_photos(photos)
    else:
        photos, build = unpacked("clothing10.tar"), {"backbone": "mobilenetv2_100", "weights": WEIGHTS}
    build_cache(photos, cache, **build)
    if not model.exists():
        merge(train_head(cache).head, cache, out=model)
    return model, cache


def latencies(exact: Path, small: Path) -> dict[str, float]:
    """Return the median ms of one image: torch eager, and both graphs in each runtime, called in turns."""
    from featcache.engines.openvino_core import openvino_core

    network = load_model(exact).eval()
    torch.set_num_threads(processor_count())
    graphs = {name: write_onnx(load_model(path), path.with_suffix(".onnx"))
              for name, path in (("float", exact), ("chosen", small))}  # fmt: skip
    runs: dict[str, Any] = {}

    def eager(image: Any) -> None:
        with torch.inference_mode():
            network(torch.from_numpy(image))

    runs["torch eager, float"] = eager
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    for name, graph in graphs.items():
        session = open_session(graph, threads=processor_count(), spinning=True)
        request = openvino_core().compile_model(str(graph), "CPU", hints).create_infer_request()
        runs[f"onnxruntime, {name}"] = lambda image, s=session: s.run(None, {"image": image})
        runs[f"openvino, {name}"] = lambda image, r=request: r.infer({"image": image})
    shape = (1, *open_session(graphs["float"]).get_inputs()[0].shape[1:])
    return dict(zip(runs, in_turns(list(runs.values()), shape), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=("size", "latency"), default="size")
    parser.add_argument("--max-drop", type=float, help="0.01; with --quick 0.5: there are ten photos to decide on")
    parser.add_argument("--max-minutes", type=float, default=40.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=DATA / "bench-search")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    max_drop = (0.5 if options.quick else 0.01) if options.max_drop is None else options.max_drop
    exact, cache = float_model(work, quick=options.quick)
    small = work / f"chosen-{options.target}"
    before, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    found = compress(exact, cache=cache, out=small, max_drop=max_drop, target=options.target,
                     max_minutes=options.max_minutes, overwrite=True, say=say)  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_SELF)
    minutes = (time.perf_counter() - before) / 60
    busy = (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / 60
    taken = latencies(exact, small)
    with (small / "compression" / "candidates.csv").open(newline="") as file:
        candidates = list(csv.DictReader(file))
    result = {
        "processor": processor_name(), "minutes": minutes, "processor_minutes": busy,
        "search": found.to_json(), "latency_ms": taken, "candidates": candidates,
    }  # fmt: skip
    say(f"{processor_name()}: {minutes:.1f} minutes, {busy:.1f} of processor time, {len(candidates)} candidates")
    for name, value in taken.items():
        say(f"  {name:24} {value:7.2f} ms  {taken['torch eager, float'] / value:5.2f} x torch eager")
    say(json.dumps(found.to_json(), indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
