"""Feed mutated photos to the image border, in processes that may crash or hang without taking this one along.

    python scripts/fuzz_images.py PHOTOS [--count 10000] [--other 2000] [--json OUT]

Every case is a photo of PHOTOS (real JPEGs) damaged in one of a dozen ways; --other cases are first saved in another
format. Either decoder must give the same pixels or the same kind of end, a one-line ImageError, within the limits of
time and memory. Exits 1 and names the case where one does not; --only CASE repeats it here, with its traceback.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from featcache.errors import ImageError
from featcache.formats.memory import status_bytes
from featcache.images.load import decode, load_image
from featcache.recipe import Preprocessing

SECONDS_PER_CASE = 60.0
PEAK_BYTES = 3 << 30
CASES_PER_PROCESS = 250
OTHER_FORMATS = ("PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF", "QOI")
PREPROCESSING = Preprocessing(64, 64, 72, "bicubic", "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Mutation = Callable[[bytearray, random.Random], bytearray]


def _flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_header_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(len(data), 700))] ^= 1 << rng.randrange(8)
    return data


def _truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(1, 5), rng.randrange(700)])]


def _overwrite(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    length = min(rng.choice([1, 4, 64, 4096]), len(data) - start)
    data[start : start + length] = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return data


def _delete(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 2, 64, 4096])]
    return data


def _insert(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice([1, 2, 64, 4096]))
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice([16, 1024, 65536])] * rng.choice([1, 2, 50])
    return data


def _marker(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(max(1, len(data) - 4))
    body = bytes([0xFF, rng.randrange(256)]) + rng.choice([b"", rng.randbytes(2), b"\0\0", b"\0\1"])
    data[start : start + len(body)] = body
    return data


def _change_marker(data: bytearray, rng: random.Random) -> bytearray:
    """Change the kind, or the length, of one of the file's own JPEG segments."""
    starts = [i for i in range(min(len(data) - 4, 4000)) if data[i] == 0xFF and data[i + 1] not in (0, 0xFF)]
    if starts:
        start = rng.choice(starts)
        if rng.random() < 0.5:
            data[start + 1] = rng.randrange(256)
        else:
            data[start + 2 : start + 4] = rng.randbytes(2)
    return data


def _frame(data: bytearray, rng: random.Random) -> bytearray:
    """Change the size, sampling, precision or number of components in the JPEG frame header."""
    start = next((s for m in (b"\xff\xc0", b"\xff\xc2", b"\xff\xc1") if (s := data.find(m)) >= 0), -1)
    if start < 0 or start + 19 > len(data):
        return _flip_header_bits(data, rng)
    for _ in range(rng.choice([1, 1, 2])):
        at = rng.choice([1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18])
        data[start + at] = rng.randrange(256)
    return data


def _metadata(data: bytearray, rng: random.Random) -> bytearray:
    """Put a damaged EXIF block, or a comment, in front."""
    order, word = rng.choice([(b"II*\0\x08\0\0\0", "little"), (b"MM\0*\0\0\0\x08", "big")])
    entries = rng.choice([1, 1, 1, 3, 60000])
    tag = rng.choice([0x0112, 0x0112, rng.randrange(1 << 16)])
    kind, count, value = rng.choice([3, 3, rng.randrange(20)]), rng.choice([1, 2, 1 << 30]), rng.randrange(1 << 32)
    value = rng.choice([value, rng.randrange(10) << (16 if word == "big" else 0)])
    entry = tag.to_bytes(2, word) + kind.to_bytes(2, word) + count.to_bytes(4, word) + value.to_bytes(4, word)
    body = b"Exif\0\0" + order + entries.to_bytes(2, word) + entry * min(entries, 3) + bytes(4)
    body = bytes(_flip_bits(bytearray(body), rng)) if rng.random() < 0.5 else body
    kind = rng.choice([0xE1, 0xE1, 0xE1, 0xE0, 0xEE, 0xE2, 0xFE])
    data[2:2] = bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2, "big") + body
    return data


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _flip_header_bits,
    _truncate,
    _overwrite,
    _delete,
    _insert,
    _repeat,
    _marker,
    _change_marker,
    _frame,
    _metadata,
)


def make_case(case: int, photos: Sequence[Path], *, other: bool) -> bytes:
    """Return the bytes of damaged image number `case`: the same whenever it is asked for with the same photos."""
    rng = random.Random(f"fuzz images {case}")
    data = rng.choice(photos).read_bytes()
    if other:
        data = _save_as(OTHER_FORMATS[case % len(OTHER_FORMATS)], data, rng)
    elif rng.random() < 0.3:
        data = _save_as("JPEG", data, rng)  # photos are mostly baseline, in colour, without restarts
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        damaged = rng.choice(MUTATIONS)(damaged, rng) or bytearray(b"\xff")
    return bytes(damaged)


def _save_as(name: str, data: bytes, rng: random.Random) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    buffer = io.BytesIO()
    if name == "JPEG":
        image = image.convert(rng.choice(["RGB", "L", "CMYK"]))
        image.save(
            buffer, name, progressive=rng.random() < 0.5, quality=rng.choice([30, 90]), subsampling=rng.randrange(3),
            restart_marker_rows=rng.randrange(2),
        )  # fmt: skip
        return buffer.getvalue()
    image.thumbnail((96, 96))
    modes = {"PNG": ["RGB", "L", "P", "RGBA", "1", "I;16"], "TIFF": ["RGB", "L", "CMYK", "I;16", "F"], "GIF": ["P"]}
    mode = rng.choice(modes.get(name, ["RGB"]))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    options = {"compression": rng.choice([None, "tiff_lzw", "tiff_adobe_deflate"])} if name == "TIFF" else {}
    (image if mode == "I;16" else image.convert(mode)).save(buffer, name, **options)
    return buffer.getvalue()


def check_case(data: bytes) -> str:
    """Return what became of an image by both decoders; `AssertionError` where they differ, or it is no stated end."""
    ends = [_end(lambda d=decoder: decode(data, decoder=d)) for decoder in ("fast", "pillow")]
    assert isinstance(ends[0], str) == isinstance(ends[1], str), f"one decoder fails: {ends!r}"
    if isinstance(ends[0], str):
        assert ends[0] == ends[1], f"two reasons: {ends!r}"
        return ends[0].split(":")[0] if ends[0].startswith(("damaged", "truncated")) else "other"
    assert np.array_equal(*ends), "the decoders differ in their pixels"
    loaded = [_end(lambda d=decoder: load_image(data, PREPROCESSING, decoder=d)) for decoder in ("fast", "pillow")]
    if isinstance(loaded[0], str) or isinstance(loaded[1], str):
        assert isinstance(loaded[0], str) and loaded[0] == loaded[1], f"one decoder fails to resize: {loaded!r}"
        return "too thin"
    difference = int(np.abs(loaded[0].astype(np.int16) - loaded[1]).max())
    assert difference <= 2, f"{difference} grey levels apart after the resize"
    scaled = [_end(lambda d=decoder: decode(data, decoder=d, min_side=72)) for decoder in ("fast", "pillow")]
    assert isinstance(scaled[0], str) == isinstance(scaled[1], str), f"one decoder fails at a reduced scale: {scaled!r}"
    assert isinstance(scaled[0], str) or np.array_equal(*scaled), "the decoders differ at a reduced scale"
    return "read"


def _end(call: Callable[[], np.ndarray]) -> np.ndarray | str:
    try:
        return call()
    except ImageError as error:
        assert len(str(error).splitlines()) == 1, f"the reason must be one line, got {str(error)!r}"
        return str(error)


def _work(arguments: argparse.Namespace) -> None:
    """Run cases of standard input, one line of JSON for each to standard output: a crash is a line that never comes."""
    import torch

    torch.set_num_threads(1)
    photos = find_photos(arguments.photos)
    for line in sys.stdin:
        case = int(line)
        started = time.perf_counter()
        try:
            outcome, fault = check_case(make_case(case, photos, other=case >= arguments.count)), None
        except Exception as error:  # noqa: BLE001 - whatever is not an ImageError is what this script looks for
            outcome, fault = "fault", f"{type(error).__name__}: {error}"[:500]
        peak = status_bytes("VmHWM") or 0  # of this program; ru_maxrss would count the process that started it
        row = {"case": case, "outcome": outcome, "fault": fault, "peak": peak, "seconds": time.perf_counter() - started}
        print(json.dumps(row), flush=True)


class _Tally:
    """What the processes found, added to from the threads that listen to them."""

    def __init__(self, total: int) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.faults: dict[int, str] = {}
        self.peak, self.slowest = 0, 0.0
        self._lock = threading.Lock()
        self._bar = tqdm(total=total, desc="cases", unit="case", disable=None, file=sys.stderr)

    def add(self, case: int, outcome: str, fault: str | None, peak: int = 0, seconds: float = 0.0) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
            if fault is not None:
                self.faults[case] = fault
            self.peak, self.slowest = max(self.peak, peak), max(self.slowest, seconds)
            self._bar.update()

    def close(self) -> None:
        self._bar.close()


def _run_process(command: Sequence[str], cases: collections.deque[int], tally: _Tally) -> None:
    """Run `cases` in a process, and in another the ones after a case that crashed it or did not end."""
    while cases:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        ) as process:
            process.stdin.write("".join(f"{case}\n" for case in cases))
            process.stdin.close()
            late = False
            while cases:
                timer = threading.Timer(SECONDS_PER_CASE, process.kill)
                timer.start()
                line = process.stdout.readline()
                late = timer.finished.is_set()
                timer.cancel()
                if not line:
                    break
                row = json.loads(line)
                assert row["case"] == cases.popleft()
                tally.add(**row)
        if cases:
            status = f"the process ended with status {process.returncode}"
            tally.add(cases.popleft(), "fault", f"no end after {SECONDS_PER_CASE:.0f} s" if late else status)


def run_cases(photos: Path, *, count: int, other: int, workers: int) -> dict[str, object]:
    """Run all cases in `workers` processes; return the counts by outcome, the faults, the peak and the slowest case."""
    total = count + other
    tally = _Tally(total)
    command = [sys.executable, __file__, str(photos), "--count", str(count), "--worker"]
    with ThreadPoolExecutor(workers) as pool:
        chunks = [range(start, min(start + CASES_PER_PROCESS, total)) for start in range(0, total, CASES_PER_PROCESS)]
        for future in [pool.submit(_run_process, command, collections.deque(chunk), tally) for chunk in chunks]:
            future.result()
    tally.close()
    return {
        "cases": total,
        "jpeg": count,
        "outcomes": dict(tally.outcomes.most_common()),
        "faults": {str(case): fault for case, fault in sorted(tally.faults.items())},
        "peak_bytes": tally.peak,
        "slowest_seconds": round(tally.slowest, 3),
    }


def find_photos(folder: Path) -> list[Path]:
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not photos:
        raise SystemExit(f"PHOTOS must hold JPEG files, {str(folder)!r} has none")
    return photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of real JPEG files")
    parser.add_argument("--count", type=int, default=10_000, help="mutated JPEGs")
    parser.add_argument("--other", type=int, default=2_000, help="mutated files of other formats")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--only", type=int, help="repeat this one case here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments)
        return
    if arguments.only is not None:
        data = make_case(arguments.only, find_photos(arguments.photos), other=arguments.only >= arguments.count)
        print(check_case(data))
        return
    result = run_cases(arguments.photos, count=arguments.count, other=arguments.other, workers=arguments.workers)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if result["faults"] or result["peak_bytes"] > PEAK_BYTES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
