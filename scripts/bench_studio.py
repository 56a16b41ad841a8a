"""Measure the studio in a headless Chromium: from a label's key to new predictions on the screen, search, scrolling.

    python scripts/bench_studio.py [--sizes 10000,100000] [--presses N] [--json OUT] [--quick]

A simulated cache of 1280 features in ten classes, every image labelled: each key gives an image another class. The
clock is the page's: a key begins when the page hears it, and ends with the frame that shows predictions of the head
that was trained on it; between stand the answer to the label, the head, and the predictions as they reach the page.
``fit`` is what the server says the head took; ``processor_ms`` is what its process used for a key altogether.
``search_ms``: the order by likeness to one image, in the server's own code (``search``) and asked for over HTTP.
``frame_ms``: a frame of the grid scrolled by half a screen each. Medians and 90th percentiles. ``--quick`` is for
tests: 600 images of 32 features.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_busy import write_simulated_cache
from reports.report import FEATCACHE

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from chromium import Page, chromium  # noqa: E402 - the driver of the tests of the page

CLASSES = 10
WARM_UP = 3  # keys
# what the page does is noted around it: no part of the page knows of it
WATCH = """
window.noted = {};
const note = (name) => { noted[name] ??= performance.now(); };
const real = window.fetch;
window.fetch = async (...given) => {
  const samples = /samples$/.test(given[0]) && given[1]?.method === "POST";
  if (/labels$/.test(given[0])) note("sent");
  const answer = await real(...given);
  if (/labels$/.test(given[0])) note("answered");
  if (samples && noted.head) {
    note("described");
    requestAnimationFrame(() => requestAnimationFrame(() => note("shown")));
  }
  return answer;
};
const Source = window.EventSource;
window.EventSource = class extends Source {
  constructor(...given) {
    super(...given);
    this.addEventListener("head", (event) => {
      const head = JSON.parse(event.data);
      if (noted.key === undefined || head.revision < noted.revision) return;
      noted.fit = head.milliseconds;
      note("head");
    });
  }
};
addEventListener("keydown", () => note("key"), true);
"""
SCROLL = """(async () => {
  const grid = document.querySelector(".grid"), frames = [];
  const frame = () => new Promise(requestAnimationFrame);
  let before = await frame();
  for (let step = 1; step <= 60; step++) {
    grid.scrollTop = step * grid.clientHeight / 2;
    const now = await frame();
    frames.push(now - before);
    before = now;
  }
  return frames;
})()"""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 90th percentile."""
    ordered = sorted(values)
    return {"median": round(statistics.median(ordered), 1), "p90": round(ordered[int(0.9 * (len(ordered) - 1))], 1)}


def press(page: Page, key: str, *, revision: int) -> dict[str, float]:
    """Return what was noted from a key to the frame with new predictions, in milliseconds after the key."""
    page.run(f"window.noted = {{ revision: {revision} }}; undefined")
    page.key(key)
    page.wait("noted.shown", 60)
    noted = page.run("noted")
    return {name: noted[name] - noted["key"] for name in ("sent", "answered", "head", "described", "shown")} | {
        "fit": noted["fit"]
    }


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def searches(n: int, d: int, *, repeats: int = 7) -> list[float]:
    """Return the milliseconds of the search among `n` images by itself."""
    from featcache.serve.studio.likeness import Likeness, descending

    features = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    likeness = Likeness(features)
    times = []
    for sample in range(repeats):
        began = time.perf_counter()
        descending(likeness.of(sample))
        times.append((time.perf_counter() - began) * 1e3)
    return times


def bench(work: Path, *, n: int, d: int, presses: int) -> dict[str, Any]:
    """Return everything measured of a workspace with `n` images."""
    write_simulated_cache(work / "caches" / "simulated", n=n, d=d, k=CLASSES, photos=work / "images" / "simulated")
    server = subprocess.Popen(
        [*FEATCACHE, "studio", str(work), "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        number = get(f"{url}/api/datasets")[0]["id"]
        with chromium() as page:
            page.before_scripts(WATCH)
            page.open(f"{url}/#teach")
            page.wait("document.querySelectorAll('.tile').length > 5", 120)
            page.wait("/\\d %/.test(document.querySelector('.worth .figure')?.textContent)", 120)
            page.wait("[...document.images].filter((one) => one.complete).length > 5", 60)
            while not get(f"{url}/api/datasets/{number}/head")["l2_by"]:
                time.sleep(0.5)  # the penalty is chosen beside the work, each time labels have grown by a quarter
            page.run("document.querySelector('.grid').focus()")
            found, used = [], 0.0
            for turn in range(presses + WARM_UP):
                place = turn  # of the image with the focus: each key goes on to the next
                wanted = (place % CLASSES + 3) % 9  # of the classes that 1 to 9 give, another than its own
                before = processor_seconds(server.pid)
                noted = press(page, str(wanted + 1), revision=turn + 1)
                time.sleep(0.1)  # what follows behind the frame is counted too
                if turn >= WARM_UP:
                    found.append(noted)
                    used += processor_seconds(server.pid) - before
            frames = page.run(SCROLL)
            problems = page.problems
        over_http = []
        for sample in range(7):
            began = time.perf_counter()
            get(f"{url}/api/datasets/{number}/samples?order=similarity&similar_to={sample}")
            over_http.append((time.perf_counter() - began) * 1e3)
    finally:
        server.terminate()
        server.wait()
    return {
        "images": n, "features": d, "classes": CLASSES, "keys": presses,
        **{f"{name}_ms": spread([one[name] for one in found]) for name in found[0]},
        "processor_ms": round(used / presses * 1e3, 1),
        "search_ms": spread(searches(n, d)), "search_over_http_ms": spread(over_http),
        "frame_ms": spread(frames), "problems": problems,
    }  # fmt: skip


def main() -> None:
    """Print what was measured, and write it as JSON where asked."""
    from featcache.system.machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000")
    parser.add_argument("--presses", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    sizes = [(600, 32)] if arguments.quick else [(int(size), 1280) for size in arguments.sizes.split(",")]
    rows = []
    for n, d in sizes:
        with tempfile.TemporaryDirectory() as work:
            rows.append(bench(Path(work), n=n, d=d, presses=3 if arguments.quick else arguments.presses))
    report = {"machine": describe_machine(), "rows": rows}
    print(report["machine"]["processor"])
    for row in rows:
        print(f"{row['images']:,} images x {row['features']} features, {row['classes']} classes, {row['keys']} keys")
        for name, value in row.items():
            if isinstance(value, dict):
                print(f"  {name:>20}: median {value['median']:8.1f}, p90 {value['p90']:8.1f}")
        print(f"  {'processor_ms':>20}: {row['processor_ms']:.1f} for each key")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
