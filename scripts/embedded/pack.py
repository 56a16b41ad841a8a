"""What a lent machine needs, in a folder of at most 64 MiB: the photos as WebP, the teachers in half precision."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from embedded.photos import Photos
from embedded.teachers import Teacher

MOST_BYTES = 64 * 2**20


def write_pack(
    photos: Photos, teachers: Sequence[Teacher], weights: Path, begins: Path, place: Path, *, quality: int = 50
) -> int:
    """Write the pack to the folder `place` and return its bytes; `SystemExit` where they are too many.

    `begins`: the student's first weights. `quality`: WebP's. At 50 the 40,000 photos of tinyimagenet200 are 42 MB.
    """
    place.mkdir(parents=True, exist_ok=True)
    coded = [_coded(pixels, quality) for pixels in photos.pixels]
    ends = np.cumsum([len(one) for one in coded])
    with (place / "photos.npz").open("wb") as file:
        np.savez(
            file, coded=np.frombuffer(b"".join(coded), np.uint8), ends=ends, labels=photos.labels.astype(np.int16),
            classes=np.array(photos.classes),
        )  # fmt: skip
    for teacher in teachers:
        tensors = load_file(weights / f"{teacher.weights}.safetensors")
        halves = {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()}
        save_file(halves, place / f"{teacher.weights}.safetensors")
    shutil.copyfile(begins, place / begins.name)
    size = sum(file.stat().st_size for file in place.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"the pack must hold at most {MOST_BYTES:,} bytes, {place} holds {size:,}: lower --quality")
    return size


def read_pack(place: Path) -> Photos:
    """Return the photos of a pack; the folder is also where `Teacher.build` finds the weights."""
    with np.load(place / "photos.npz", allow_pickle=False) as arrays:
        coded, ends = arrays["coded"].tobytes(), arrays["ends"]
        labels, classes = arrays["labels"].astype(np.int64), tuple(arrays["classes"].tolist())
    begins = np.concatenate([[0], ends[:-1]])
    pixels = [np.asarray(Image.open(io.BytesIO(coded[a:b]))) for a, b in zip(begins, ends, strict=True)]
    return Photos(np.stack(pixels), labels, classes)


def _coded(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()
