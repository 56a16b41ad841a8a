"""Measure `featcache serve` over loopback with real JPEGs, against a plain FastAPI program and LitServe: one table.

    python scripts/bench_serve.py [--bundle BUNDLE] [--images DIR] [--clients 1,8,64] [--seconds S] [--rounds N]
                                  [--memory REQUESTS] [--json OUT] [--quick]

All servers run the same ONNX file; each measurement of one is followed by that of the next, round after round, and the
medians over the rounds stand in the table. Labels are compared image by image. ``ceiling`` is decode and network
alone: the same photos through the server's own threads, without HTTP. ``--memory`` sends so many requests more and
states the resident memory of `featcache serve` before them, after a warm-up of 2,000, and after each further tenth.
``--quick`` is for tests: a second each, and only what the servers answer counts. LitServe takes part where it is
installed. Without ``--bundle`` one of the built-in network and --images (default: the digits) is made.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "scripts" / "peers"
FEATCACHE = [sys.executable, "-c", "from featcache.cli import main; main()"]
MOST_PHOTOS = 256
WARM_UP = 2000  # requests, until buffers and the allocator have their size


@dataclass(frozen=True)
class Contender:
    """A server: its command (the port comes last), and how an image is sent to it."""

    name: str
    command: tuple[str, ...]
    path: str
    form: bool = False

    def request(self, data: bytes) -> bytes:
        """Return a whole HTTP request with the image."""
        kind = "image/jpeg"
        if self.form:
            head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
            data, kind = head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
        lines = (
            f"POST {self.path} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            f"Content-Length: {len(data)}",
        )
        return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass(frozen=True)
class Load:
    """What a number of clients saw: `seconds` each request took, the `labels` by photo, and how long all of it took."""

    seconds: list[float]
    labels: dict[int, str]
    wall: float

    @property
    def images_per_second(self) -> float:
        return len(self.seconds) / self.wall

    def milliseconds(self, share: float) -> float:
        """Return the time below which the share of the requests stayed."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))] * 1e3


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Any:
    """Return the JSON of one answer; raises `RuntimeError` for any status but 200."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(f"{head[:40]!r}: {body[:200]!r}")
    return json.loads(body)


async def load(port: int, requests: Sequence[bytes], clients: int, *, seconds: float = 0, least: int = 0) -> Load:
    """Return what `clients` see that ask again and again for `seconds`, and `least` times together or more."""
    times: list[float] = []
    labels: dict[int, str] = {}
    begun = time.perf_counter()
    sent = 0

    async def client() -> None:
        nonlocal sent
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while sent < least or time.perf_counter() - begun < seconds:
            index, sent = sent % len(requests), sent + 1
            started = time.perf_counter()
            answer = await ask(reader, writer, requests[index])
            times.append(time.perf_counter() - started)
            labels[index] = (answer[0] if isinstance(answer, list) else answer)["label"]
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(times, labels, time.perf_counter() - begun)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def start(contender: Contender, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Return the server's process and port, once it listens."""
    port = free_port()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*contender.command, str(port)], stdout=out, stderr=out, start_new_session=True
        )  # fmt: skip
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process, port
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"{contender.name} does not listen: {log.read_text(encoding='utf-8')[-2000:]}")


def ceiling(bundle: Path, photos: Sequence[bytes], *, seconds: float) -> float:
    """Return images/s through decode and network in this process, 64 of them at a time."""
    from concurrent.futures import Future

    from featcache.serve.metrics import Metrics
    from featcache.serve.models import Models
    from featcache.serve.places import Place
    from featcache.serve.served import Answer
    from featcache.serve.settings import ServeSettings

    models = Models(ServeSettings(), Metrics())
    model = models.load(Place("bench", "1", bundle))
    models.put(model)
    waiting: list[Future[Answer]] = [model.classify(photos[i % len(photos)]) for i in range(64)]
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        waiting.pop(0).result()
        count += 1
        waiting.append(model.classify(photos[count % len(photos)]))
    rate = count / (time.perf_counter() - begun)
    for answer in waiting:
        answer.result()
    models.close()
    return rate


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024


def memory(process: subprocess.Popen[bytes], port: int, requests: Sequence[bytes], *, count: int) -> dict[str, Any]:
    """Return the resident bytes of a server before `count` requests of 16 clients, and on the way through them."""
    found: dict[str, Any] = {"requests": count, "bytes_before": resident_bytes(process)}
    asyncio.run(load(port, requests, 16, least=min(WARM_UP, count)))
    found["bytes_after_warm_up"] = resident_bytes(process)
    tenths = []
    for _ in range(10):
        asyncio.run(load(port, requests, 16, least=max(count - WARM_UP, 0) // 10))
        tenths.append(resident_bytes(process))
    return {**found, "bytes_after_tenths": tenths, "bytes_after": tenths[-1]}


def contenders(bundle: Path) -> tuple[list[Contender], dict[str, str]]:
    """Return the servers to compare, and the reason for each that cannot be."""
    chosen = [
        Contender("featcache", (*FEATCACHE, "serve", f"bench={bundle}", "--port"), "/models/bench/classify?top=1"),
        Contender("fastapi", (sys.executable, str(PEERS / "serve_fastapi.py"), str(bundle), "--port"), "/classify"),
    ]
    if importlib.util.find_spec("litserve") is None:
        return chosen, {"litserve": "the package litserve is not installed"}
    command = (sys.executable, str(PEERS / "serve_litserve.py"), str(bundle), "--port")
    return [*chosen, Contender("litserve", command, "/predict", form=True)], {}


def made_bundle(work: Path, images: Path | None) -> tuple[Path, Path]:
    """Return a bundle of the built-in network, trained on `images` or the digits, and the images."""
    if images is None:
        images = work / "digits"
        subprocess.run([sys.executable, str(ROOT / "scripts" / "make_digits.py"), str(images)], check=True)
    for arguments in (
        ["build", images, "--cache", work / "cache"], ["train", work / "cache", "--out", work / "head"],
        ["merge", work / "head", work / "cache", "--out", work / "model"],
        ["export", work / "model", "--out", work / "bundle"],
    ):  # fmt: skip
        subprocess.run([*FEATCACHE, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return work / "bundle", images


def measure(
    servers: dict[Contender, int], photos: Sequence[bytes], clients: Sequence[int], *, seconds: float, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, dict[int, str]]]:
    """Return a row for each server and number of clients, and each server's labels by photo."""
    found: dict[tuple[str, int], list[Load]] = {}
    labels: dict[str, dict[int, str]] = {contender.name: {} for contender in servers}
    requests = {contender: [contender.request(photo) for photo in photos] for contender in servers}
    for contender, port in servers.items():  # every photo once: labels, and the warm-up
        labels[contender.name] = asyncio.run(load(port, requests[contender], 4, least=len(photos))).labels
    for _ in range(rounds):
        for count in clients:
            for contender, port in servers.items():
                one = asyncio.run(load(port, requests[contender], count, seconds=seconds))
                found.setdefault((contender.name, count), []).append(one)
    rows = [
        {
            "server": name,
            "clients": count,
            "images_per_second": statistics.median(one.images_per_second for one in loads),
            "p50_ms": statistics.median(one.milliseconds(0.5) for one in loads),
            "p99_ms": statistics.median(one.milliseconds(0.99) for one in loads),
            "requests": sum(len(one.seconds) for one in loads),
        }
        for (name, count), loads in found.items()
    ]
    return rows, labels


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds = 0.5, 1
    with tempfile.TemporaryDirectory() as scratch:
        report = bench(arguments, Path(scratch))
    for row in report["rows"]:
        print(
            f"{row['server']:>10} {row['clients']:>4} clients {row['images_per_second']:8.1f} images/s"
            f"  p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:7.1f} ms"
        )
    others = {key: value for key, value in report.items() if key != "rows"}
    print(json.dumps(others, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["other_labels"]:
        sys.exit(f"the servers must give the same labels, they do not: {report['other_labels']}")


def bench(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Return everything measured."""
    from featcache.system.machine import describe_machine

    bundle, images = arguments.bundle, arguments.images
    if bundle is None:
        bundle, images = made_bundle(work, images)
    photos = [path.read_bytes() for path in sorted(images.rglob("*.[jp][pn]g"))[:: max(1, arguments.quick * 2)]]
    photos = photos[:: max(1, len(photos) // MOST_PHOTOS)][:MOST_PHOTOS]
    chosen, skipped = contenders(bundle)
    processes: dict[Contender, subprocess.Popen[bytes]] = {}
    servers: dict[Contender, int] = {}
    try:
        for contender in chosen:
            processes[contender], servers[contender] = start(contender, work / f"{contender.name}.log")
        counts = [int(count) for count in arguments.clients.split(",")]
        rows, labels = measure(servers, photos, counts, seconds=arguments.seconds, rounds=arguments.rounds)
        ours = labels["featcache"]
        report: dict[str, Any] = {
            "rows": rows,
            "photos": len(photos),
            "other_labels": {
                name: sum(ours[i] != label for i, label in theirs.items())
                for name, theirs in labels.items()
                if theirs != ours
            },
            "skipped": skipped,
            "ceiling_images_per_second": ceiling(bundle, photos, seconds=arguments.seconds),
            "machine": describe_machine(),
        }
        if arguments.memory:
            first = chosen[0]
            requests = [first.request(photo) for photo in photos]
            report["memory"] = memory(processes[first], servers[first], requests, count=arguments.memory)
    finally:
        for process in processes.values():
            os.killpg(process.pid, signal.SIGTERM)  # LitServe's own processes outlive it
        for process in processes.values():
            process.wait(30)
    return report


if __name__ == "__main__":
    main()
