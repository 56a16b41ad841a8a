"""The photos the embedded backbone learns from, decoded once into one array that stays in memory.

For a machine that is lent without them they are packed again, as WebP, with the teachers: see `pack.py`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels of tinyimagenet200's photos


@dataclass(frozen=True)
class Photos:
    """`pixels`: (n, 64, 64, 3) uint8, RGB. `labels`: (n,) int64. `classes`: their names, sorted."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def of_classes(self, wanted: range) -> Photos:
        """Return the photos of the classes at the positions `wanted`, with the labels they have here."""
        chosen = np.isin(self.labels, np.asarray(wanted))
        return Photos(self.pixels[chosen], self.labels[chosen], self.classes)


def read_photos(folder: Path, kept: Path) -> Photos:
    """Return the photos of an image folder, class by class in order of name; kept in the file `kept`."""
    if not kept.exists():
        classes = sorted(place.name for place in folder.iterdir() if place.is_dir())
        files = [(file, label) for label, name in enumerate(classes) for file in sorted((folder / name).iterdir())]
        with ThreadPoolExecutor(2) as pool:
            pixels = np.stack(list(pool.map(lambda one: _decode(one[0]), files)))
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(".part")
        with beside.open("wb") as file:
            np.savez(file, pixels=pixels, labels=np.array([label for _, label in files]), classes=np.array(classes))
        beside.rename(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return Photos(arrays["pixels"], arrays["labels"].astype(np.int64), tuple(arrays["classes"].tolist()))


def _decode(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
