"""Kill real builds with SIGKILL at random instants and check that nothing committed is lost.

    scripts/chaos_cache.py --kills 100 [--json FILE] [--seed 0]

Each kill has a fresh directory and one of the two stores in turn. The clock starts at the first commit. The instant is
drawn from the rest of the build, or inside one step that would rarely be hit: a block write, the growth of LMDB's map
or a shard's flush, the publishing of a commit, the merging of blocks into a next generation. After each kill: `verify`
is ok, the rows committed before are all there, a build extracts exactly the others, `verify` is ok again and the
content digest equals that of a build nobody disturbed. A run that is interrupted carries on from FILE. Exit status 1
where anything was lost.

The build is `build_cache` with a network small enough to be no part of what is measured; blocks are
small and commits frequent, so that everything that can happen to a large cache happens in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from featcache.engines import Engine

IMAGES, EXTRA, ROW = 160, 40, 640
STEPS = {"none": 0, "write": 1, "flush or growth": 2, "publish": 3, "merge": 4}
MOMENTS = ("random", "write", "random", "flush or growth", "publish", "merge")
NAMES = {number: name for name, number in STEPS.items()}


class SmallNetwork(Engine):
    """A fixed function of the pixels that takes a few milliseconds a batch."""

    name, version, precision, batch_size = "torch", "2", "fp32", 8
    height = width = 16
    columns = (("features", (ROW,)),)
    workers = 1

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        time.sleep(0.004)
        flat = batch.reshape(len(batch), -1).astype(np.float32) / 255
        return (flat[:, :ROW] - flat.mean(axis=1, keepdims=True),)

    def _release(self) -> None:
        """Nothing is held."""


def build(photos: Path, cache: Path, store: str, *, prune_missing: bool = False) -> object:
    from featcache.cache.creation import create_cache
    from featcache.extract.build import Extractor, build_cache
    from featcache.extract.settings import ExtractSettings
    from featcache.recipe import Preprocessing, Recipe
    from featcache.store import StoreSettings

    size = Preprocessing(16, 16, 16, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    recipe = Recipe(
        model="small", model_kwargs={}, model_digest=None, weights_sha256="0" * 64, outputs=("features",),
        preprocessing=size, decoder="pillow", dct_scaling=False, orientation="exif", views=1, view_seed=0,
        engine="torch", engine_version="2", precision="fp32", dtype="float16", weights="small",
    )  # fmt: skip
    if not cache.exists():
        settings = StoreSettings(block_rows=32, key_block_rows=64)
        shapes = dict(SmallNetwork.columns)
        create_cache(cache, recipe, shapes=shapes, store=store, request={}, store_settings=settings).close()
    extractor = Extractor(SmallNetwork(), recipe)
    return build_cache(
        photos,
        cache,
        store=store,
        dataset="photos",
        extractor=extractor,
        prune_missing=prune_missing,
        workers=2,
        settings=ExtractSettings(commit_rows=16, commit_seconds=0.05),
    )


# --- the process that is killed -------------------------------------------------------------------------------------


def child(photos: Path, cache: Path, store: str, marks_file: Path, *, prune_missing: bool) -> None:
    """Build, noting in a mapped file how many commits there were, and in which step it is."""
    from featcache.store import _lmdb, _writer, _zarr

    marks = np.memmap(marks_file, dtype=np.int64, mode="r+", shape=(2,))

    def note(place: object, name: str, step: str) -> None:
        inner = getattr(place, name)

        def noted(*arguments: object, **settings: object) -> object:
            before = int(marks[1])
            marks[1] = max(before, STEPS[step])
            try:
                return inner(*arguments, **settings)
            finally:
                marks[1] = before

        setattr(place, name, noted)

    for generation in (_lmdb.LmdbGeneration, _zarr.ZarrGeneration):
        note(generation, "write", "write")
    for place, name in ((_lmdb, "_open"), (_zarr, "_write_chunk")):
        note(place, name, "flush or growth")
    for place, name in ((_lmdb, "_put_record"), (_zarr.ZarrGeneration, "_publish")):
        note(place, name, "publish")
    note(_writer.DiskWriter, "_compact", "merge")
    commit = _writer.DiskWriter.commit

    def counted(writer: _writer.DiskWriter) -> None:
        commit(writer)
        marks[0] += 1

    _writer.DiskWriter.commit = counted  # type: ignore[method-assign]
    build(photos, cache, store, prune_missing=prune_missing)


# --- the one that kills ---------------------------------------------------------------------------------------------


def fork_build(photos: Path, cache: Path, store: str, marks_file: Path, *, prune_missing: bool) -> int:
    """Start `child` in a process of its own and return its id."""
    marks_file.write_bytes(bytes(16))
    process = os.fork()
    if process:
        return process
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        child(photos, cache, store, marks_file, prune_missing=prune_missing)
    finally:
        os._exit(0)


def ended(process: int, seconds: float = 0.0) -> bool:
    """Return whether the process ended within some seconds; it is left to be waited for."""
    until = time.perf_counter() + seconds
    while True:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        if time.perf_counter() >= until:
            return False
        time.sleep(0.0005)


def undisturbed_seconds(photos: Path, place: Path, store: str) -> float:
    """Return how long a build takes from its first commit on."""
    process = fork_build(photos, place / store, store, place / "marks", prune_missing=False)
    marks = np.memmap(place / "marks", dtype=np.int64, mode="r", shape=(2,))
    while marks[0] == 0 and not ended(process):
        time.sleep(0.0005)
    first = time.perf_counter()
    os.waitpid(process, 0)
    return time.perf_counter() - first


def kill_one(photos: Path, whole: Path, place: Path, store: str, moment: str, draw: random.Random, span: float) -> str:
    """Start a build and kill it; return the step it died in, or "finished" where it was too quick."""
    cache, merging = place / "cache", moment == "merge"
    if merging:
        build(whole, cache, store)
    process = fork_build(photos, cache, store, place / "marks", prune_missing=merging)
    marks = np.memmap(place / "marks", dtype=np.int64, mode="r", shape=(2,))
    while not merging and marks[0] == 0 and not ended(process):
        pass
    late = time.perf_counter() + draw.random() * span * 0.9
    if moment == "random":
        ended(process, max(0.0, late - time.perf_counter()))
    else:
        while marks[1] != STEPS[moment] or (time.perf_counter() < late and not merging):
            if ended(process):
                break
        time.sleep(draw.random() * 0.001)
    step = NAMES[int(marks[1])]
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return step if os.WIFSIGNALED(status) else "finished"


def check(photos: Path, cache: Path, store: str, digest: str, *, merging: bool) -> tuple[int, list[str]]:
    """Return how many rows were committed, and what is wrong after the kill and after the next build."""
    from featcache import verify
    from featcache.cache import open_cache

    wrong = [f"after the kill: {problem}" for problem in verify(cache).problems]
    with open_cache(cache) as opened, opened.reader() as reader:
        keys = np.array(reader.keys())
        rows = reader.read("features", 0, len(reader))
    report = build(photos, cache, store, prune_missing=merging)
    expected = 0 if merging else IMAGES - len(keys)
    if report.extracted != expected or report.failed:  # type: ignore[attr-defined]
        wrong.append(f"{len(keys)} rows were committed, the next build extracted {report.extracted}")  # type: ignore[attr-defined]
    wrong += [f"after the next build: {problem}" for problem in verify(cache).problems]
    with open_cache(cache) as opened, opened.reader() as reader:
        found = reader.find(keys)
        kept = found >= 0
        if not (kept.all() or merging) or not np.array_equal(reader.gather("features", found[kept]), rows[kept]):
            wrong.append("a committed row is gone or changed")
        if len(reader) != IMAGES or opened.content_digest() != digest:
            wrong.append("the finished content is not that of an undisturbed build")
    return len(keys), wrong


def make_photos(place: Path, *, extra: int) -> Path:
    from PIL import Image

    for number in range(IMAGES + extra):
        file = place / "ab"[number % 2] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return place


def run(kills: int, *, seed: int, json_file: Path | None) -> dict[str, object]:
    from featcache.cache import open_cache

    done: list[dict[str, object]] = []
    if json_file is not None and json_file.exists():
        before = json.loads(json_file.read_text())
        done = before["each"] if before["seed"] == seed else []
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        root = Path(scratch)
        photos, whole = make_photos(root / "photos", extra=0), make_photos(root / "whole", extra=EXTRA)
        build(photos, root / "undisturbed", "lmdb")
        spans = {store: undisturbed_seconds(photos, root, store) for store in ("lmdb", "zarr")}
        with open_cache(root / "undisturbed") as cache:
            digest = cache.content_digest()
        while len(done) < kills:
            number = len(done)
            draw = random.Random(f"{seed} {number}")
            store, moment = ("lmdb", "zarr")[number % 2], MOMENTS[number // 2 % len(MOMENTS)]
            for attempt in range(50):
                place = root / f"{number}-{attempt}"
                place.mkdir()
                step = kill_one(photos, whole, place, store, moment, draw, spans[store])
                if step != "finished":
                    break
                shutil.rmtree(place)
            else:
                raise SystemExit(f"no build could be killed at {moment!r}: the machine is too quick for it")
            rows, wrong = check(photos, place / "cache", store, digest, merging=moment == "merge")
            shutil.rmtree(place)
            done.append({"store": store, "moment": moment, "died_in": step, "committed_rows": rows, "wrong": wrong})
            if wrong:
                print(f"kill {number}: {store}, {moment}: {wrong}", file=sys.stderr)
            result = summary(done, seed)
            if json_file is not None:
                json_file.write_text(json.dumps(result, indent=1) + "\n")
    return summary(done, seed)


def summary(done: list[dict[str, object]], seed: int) -> dict[str, object]:
    return {
        "ok": not any(one["wrong"] for one in done),
        "kills": len(done),
        "by_store": dict(Counter(str(one["store"]) for one in done)),
        "died_in": dict(Counter(f"{one['store']}: {one['died_in']}" for one in done)),
        "partial": sum(0 < int(str(one["committed_rows"])) < IMAGES for one in done),
        "seed": seed,
        "each": done,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="Write the results here after each kill; carry on from them.")
    arguments = parser.parse_args()
    result = run(arguments.kills, seed=arguments.seed, json_file=arguments.json)
    print(json.dumps({name: value for name, value in result.items() if name != "each"}))
    sys.exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
