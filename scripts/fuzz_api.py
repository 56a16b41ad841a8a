"""Ask `featcache serve` and `featcache studio` whatever their OpenAPI documents allow, and much that they do not.

    python scripts/fuzz_api.py [--cases N] [--schemathesis PROGRAM] [--seed N] [--json OUT]

Both run as processes of their own, on a small bundle and in a small workspace that are made for it and taken away
afterwards; schemathesis (`pip install schemathesis`, best into an environment of its own) draws at least so many cases
for both together. Printed, and written as JSON: cases, statuses, the slowest answer, every case that was answered by
5xx or within `SECONDS` not at all; where there is one of those, the exit status is 1.

The studio is asked as from another machine, so that jobs can read nothing outside the workspace, and the jobs that it
begins are cancelled as they come. ``/api/events``, which never ends, is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FEATCACHE = [sys.executable, "-c", "from featcache.cli import main; main()"]
SECONDS = 10.0  # for an answer
TOKEN = "fuzz"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60)}


@dataclass
class Seen:
    """What a server's log tells of its answers."""

    statuses: Counter[int] = field(default_factory=Counter)
    slowest: dict[str, Any] = field(default_factory=lambda: {"milliseconds": 0.0})
    faults: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "cases": sum(self.statuses.values()),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "slowest": self.slowest,
            "faults": self.faults,
        }


def read_log(lines: Iterable[str]) -> Seen:
    """Return what the JSON lines of a server tell: an answer of 5xx and a bug are faults."""
    seen = Seen()
    for line in lines:
        try:
            told = json.loads(line)
        except ValueError:
            seen.faults.append({"line": line[:2000]})  # a server says nothing but JSON
            continue
        if told["event"] == "bug":
            seen.faults.append(told)
        elif told["event"] == "request":
            seen.statuses[told["status"]] += 1
            if told["status"] >= 500:
                seen.faults.append(told)
            if told["milliseconds"] > seen.slowest["milliseconds"]:
                seen.slowest = {key: told[key] for key in ("method", "path", "status", "milliseconds")}
    return seen


def make_workspace(place: Path) -> Path:
    """Return a workspace with a cache of twelve photos and a bundle made of it."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (place / "images" / "small" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.normal(colour, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / "images" / "small" / name / f"{number}.png")
    paths = {kind: place / kind / "small" for kind in ("images", "caches", "heads", "models", "bundles")}
    network = ("--weights", "random:0", "--engine", "torch", "--dataset", "small")
    for arguments in (
        ("build", paths["images"], "--cache", paths["caches"], *network),
        ("train", paths["caches"], "--out", paths["heads"]),
        ("merge", paths["heads"], paths["caches"], "--out", paths["models"]),
        ("export", paths["models"], "--out", paths["bundles"]),
    ):
        subprocess.run([*FEATCACHE, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return place


@contextlib.contextmanager
def server(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """Give the address of a server, which is ended after the block; what it logs is in `log`."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*FEATCACHE, *arguments, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["url"].partition("/?")[0]
        yield address.replace("0.0.0.0", "127.0.0.1")
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def cancelled_jobs(address: str, any_jobs: bool) -> Iterator[None]:
    """Cancel inside the block whatever job there is, as soon as it is seen; `any_jobs`: whether there are any."""
    stopped = threading.Event()

    def ask(method: str, path: str) -> Any:
        request = urllib.request.Request(address + path, method=method, headers=HEADERS)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    def work() -> None:
        while not stopped.wait(0.5):
            with contextlib.suppress(OSError):  # a refusal as well: it has ended meanwhile
                for job in ask("GET", "/api/jobs"):
                    if job["state"] in ("queued", "running"):
                        ask("POST", f"/api/jobs/{job['id']}/cancel")

    thread = threading.Thread(target=work)
    if any_jobs:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        if any_jobs:
            thread.join()


def fuzz(program: str, address: str, *, examples: int, seed: int, known: dict[str, Any], work: Path) -> str:
    """Ask the server at `address`, each operation `examples` times or more; return what went wrong, "" for nothing.

    `known`: parameters that always have one value, so that what lies behind them is asked for.
    """
    command = [
        program, "run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}",
        "--exclude-path", "/api/events", "--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing",
        "--max-examples", str(examples), "--seed", str(seed), "--request-timeout", str(SECONDS),
        "--continue-on-failure", "--no-shrink", "--suppress-health-check", "all", "--generation-database", "none",
        "--warnings", "off", "--no-color",
    ]  # fmt: skip
    lines = ["[parameters]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in known.items())]
    (work / "schemathesis.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout if done.returncode else ""


def run(program: str, *, cases: int, seed: int, work: Path) -> dict[str, Any]:
    """Return what both servers answered: with any names, and with those of what is there, in turn."""
    workspace = make_workspace(work / "workspace")
    bundle = shutil.copytree(workspace / "bundles" / "small", work / "bundle")
    asked: dict[str, tuple[list[str], dict[str, Any]]] = {
        "serve": (["serve", f"small={bundle}", "--token", TOKEN], {"path.name": "small", "path.version": "1"}),
        "studio": (
            ["studio", str(workspace), "--host", "0.0.0.0", "--token", TOKEN],
            {"path.number": 1, "path.sample": 3, "query.bundle": "bundles/small", "query.name": "bundles/small"},
        ),
    }
    report: dict[str, Any] = {}
    for name, (arguments, known) in asked.items():
        seen, said, began, lines = Seen(), [], time.monotonic(), []
        for turn in itertools.count():
            log = work / f"{name}-{turn}.log"
            with server(arguments, log) as address, cancelled_jobs(address, name == "studio"):
                said.append(
                    fuzz(program, address, examples=max(cases // 200, 1), seed=seed + turn,
                         known=known if turn % 2 else {}, work=work)
                )  # fmt: skip
            lines += log.read_text(encoding="utf-8").splitlines()
            seen = read_log(lines)
            if turn % 2 and sum(seen.statuses.values()) >= cases // 2:
                break
        report[name] = {
            **seen.to_json(), "said": list(filter(None, said)), "seconds": round(time.monotonic() - began, 1)
        }  # fmt: skip
    return report


def main() -> None:
    """Print what was answered, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--schemathesis", default="schemathesis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    program = shutil.which(arguments.schemathesis)
    if program is None:
        sys.exit(
            f"--schemathesis must be a program, {arguments.schemathesis!r} is none: pip install schemathesis, best "
            "into an environment of its own, and name its program"
        )
    with tempfile.TemporaryDirectory() as work:
        report = run(program, cases=arguments.cases, seed=arguments.seed, work=Path(work))
    for name, found in report.items():
        print(f"{name}: {found['cases']} cases, {found['statuses']}, slowest {found['slowest']}")
        for fault in found["faults"] + found["said"]:
            print(fault if isinstance(fault, str) else json.dumps(fault))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if any(found["faults"] or found["said"] for found in report.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
