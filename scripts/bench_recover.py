"""Measure how many points each minute of recovery buys: one pruned model, several methods and times, one table.

    python scripts/bench_recover.py MODEL CACHE [--amount 0.5] [--minutes 2,5,10] [--targets features,logits,labels]
        [--views 1,4,8] [--json OUT] [--work DIR]
    python scripts/bench_recover.py --quick

MODEL and CACHE: a float model and the cache its head was trained on, with the photos where they were. The model is
pruned once (the head's refit included); each line is that model recovered in one way, and its head refitted. Accuracy
is that of the headline split (test, else val), with the photos that only the recovered and only the pruned model get
right. --quick: photos drawn here and a network of random weights, seconds instead of minutes, to see that it runs.
Finished parts are kept in --work and not measured again (delete it to start over); a killed one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DATA = Path.home() / ".cache" / "featcache-data"


def say(line: str) -> None:
    """Write a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def draw_photos(folder: Path) -> None:
    """Write 2 classes of 24 JPEGs into `folder`: noise around a brightness of each class."""
    for label, brightness in (("dark", 90), ("light", 150)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(24):
            generator = np.random.default_rng([brightness, index])
            pixels = np.clip(generator.normal(brightness, 40, size=(90, 90, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index:02}.jpg")


def small_example(work: Path) -> tuple[Path, Path]:
    """Return a float model and its cache, made of drawn photos and random weights."""
    from featcache import LinearOptions, build_cache, merge, save_head, train_head

    if not (work / "model").exists():
        draw_photos(work / "photos")
        build_cache(work / "photos", work / "cache", backbone="test_efficientnet", weights="random:3")
        save_head(train_head(work / "cache", head=LinearOptions(l2=0.1)).head, work / "head", overwrite=True)
        merge(work / "head", work / "cache", out=work / "model")
    return work / "model", work / "cache"


def measured(name: str, work: Path, model: Path, cache: Path, pruned: Path, **settings: Any) -> dict[str, Any]:
    """Return what `recover` says with `settings`; measured once."""
    from featcache import recover

    place = work / f"{name}.json"
    if not place.exists():
        say(name)
        result = recover(pruned, cache=cache, out=work / name, teacher=model, overwrite=True, say=say, **settings)
        place.write_text(json.dumps({"name": name, **settings, **result.to_json()}, indent=1) + "\n")
    found: dict[str, Any] = json.loads(place.read_text())
    return found


def table(rows: list[dict[str, Any]], float_accuracy: float) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| minutes | targets | views | epochs | images/s | distance on val | accuracy | points | per minute | flips |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        points = 100 * (row["accuracy_after"] - row["accuracy_before"])
        minutes = row["train_seconds"] / 60
        lines.append(
            f"| {minutes:.1f} | {row['targets']} | {row['views']} | {row['epochs']:.1f} "
            f"| {row['images_per_second'] or 0:.0f} | {row['val_loss_before']:.3f} → {row['val_loss_after']:.3f} "
            f"| {100 * row['accuracy_before']:.2f} → {100 * row['accuracy_after']:.2f} | {points:+.2f} "
            f"| {points / minutes if minutes else 0:+.2f} | +{row['gained']} −{row['lost']} |"
        )
    split, n = rows[0]["split"], rows[0]["n"]
    return f"float {100 * float_accuracy:.2f} % of the {n} photos of {split}\n\n" + "\n".join(lines)


def main() -> None:
    """Prune once, recover in every way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--minutes", default="2,5,10")
    parser.add_argument("--targets", default="features,logits,labels")
    parser.add_argument("--views", default="1,4,8")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=DATA / "bench_recover")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    work, model, cache = arguments.work, arguments.model, arguments.cache
    if not arguments.quick and (model is None or cache is None):
        parser.error("MODEL and CACHE must be named, or --quick")
    if arguments.quick:
        work = work / "quick"
        work.mkdir(parents=True, exist_ok=True)
        model, cache = small_example(work)
        arguments.minutes, arguments.targets, arguments.views, arguments.amount = "0.02", "features,logits", "1,2", 0.3
    work.mkdir(parents=True, exist_ok=True)
    from featcache import prune

    pruned, figures = work / "pruned", work / "pruned.json"
    if not figures.exists():
        result = prune(model, cache=cache, out=pruned, amount=arguments.amount, overwrite=True)
        figures.write_text(json.dumps(result.to_json(), indent=1) + "\n")
    begun = json.loads(figures.read_text())
    left = begun["macs"] / begun["macs_before"]
    rows = []
    for minutes in map(float, arguments.minutes.split(",")):
        for targets in arguments.targets.split(","):
            for views in map(int, arguments.views.split(",")):
                name = f"{minutes:g}-{targets}-{views}"
                settings = {"minutes": minutes, "targets": targets, "views": views}
                rows.append(measured(name, work, model, cache, pruned, **settings))
    print(f"{100 * left:.0f} % of the multiplications left; " + table(rows, begun["accuracy_float"]))
    if arguments.json:
        arguments.json.write_text(json.dumps({"pruned": begun, "recovered": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
