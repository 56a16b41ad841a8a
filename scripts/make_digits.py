"""Write scikit-learn's 1,797 handwritten digits (UCI, 8x8, CC BY 4.0) as a PNG image folder: FOLDER/0 … FOLDER/9."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, *, count: int | None = None) -> int:
    """Write the first `count` images (default: all) that are not there yet, as 64x64 grey PNGs; return how many."""
    digits = load_digits()
    pairs = list(zip(digits.images, digits.target, strict=True))[:count]
    for index, (pixels, label) in enumerate(pairs):
        path = folder / str(label) / f"{index:04}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        image.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return len(pairs)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(f"{write_digits(folder)} digits in {folder}", file=sys.stderr)
