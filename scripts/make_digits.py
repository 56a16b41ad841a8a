"""Write scikit-learn's 1,797 handwritten digits (UCI, 8x8, CC BY 4.0) as a PNG image folder: FOLDER/0 … FOLDER/9."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> int:
    """Write the images that are not there yet, as 64x64 grey PNGs; return how many there are."""
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{index:04}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).round().astype(np.uint8))
        image.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return len(digits.images)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(f"{write_digits(folder)} digits in {folder}", file=sys.stderr)
