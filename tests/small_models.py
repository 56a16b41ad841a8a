"""Models of two easily told classes, made in seconds: photos, their cache, a head, the merged model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from conftest import write_photo

from featcache.extract.build import build_cache
from featcache.model.merging import merge
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions

CLASSES = ("cat", "dog")


def write_photos(folder: Path, *, count: int = 12, size: tuple[int, int] = (180, 170)) -> Path:
    """Write `count` JPEGs of each class into ``FOLDER/photos``, whose splits are drawn; return that."""
    for hue, name in enumerate(CLASSES):
        for i in range(count):
            write_photo(folder / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue, size=size)
    return folder / "photos"


def write_split_photos(folder: Path, counts: Mapping[str, int], *, size: tuple[int, int]) -> Path:
    """Write so many JPEGs of each class into ``FOLDER/photos/SPLIT``; return ``FOLDER/photos``."""
    for split, count in counts.items():
        for hue, name in enumerate(CLASSES):
            for i in range(count):
                seed = 1000 * hue + 100 * len(split) + i
                write_photo(folder / "photos" / split / name / f"{i:02}.jpg", seed=seed, hue=hue, size=size)
    return folder / "photos"


def merged(photos: Path, place: Path, backbone: str) -> Path:
    """Make ``cache``, ``head`` and ``model`` of `photos` in `place`, unless they are there; return it."""
    if not (place / "model").exists():
        build_cache(photos, place / "cache", backbone=backbone, weights="random:3", precision="fp32")
        train_head(place / "cache", head=LinearOptions(l2=0.1)).save(place / "head")
        merge(place / "head", place / "cache", out=place / "model")
    return place
