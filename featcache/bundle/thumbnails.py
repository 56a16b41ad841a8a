"""Small pictures of images a model got wrong, as ``data:`` URIs that a report carries in itself."""

from __future__ import annotations

import base64
from typing import Any

from featcache.datasets.labelled import LabelledImages
from featcache.errors import ImageError
from featcache.images.read import read_image_bytes
from featcache.images.thumbnail import thumbnail as small_jpeg
from featcache.runtime.evaluation import Evaluation

THUMBNAIL_SIDE = 112
_MOST = 48


def mistake_thumbnails(evaluation: Evaluation, images: LabelledImages, *, most: int = _MOST) -> list[dict[str, Any]]:
    """Return the surest mistakes of `evaluation` on `images` as JSON values, `most` of them, each with a thumbnail."""
    entries = []
    for mistake in evaluation.mistakes[:most]:
        try:
            picture = thumbnail(read_image_bytes(images.paths[mistake.index]))
        except ImageError:
            continue  # it could be read a moment ago; the list of mistakes is complete without its picture
        entries.append(
            {
                "path": mistake.path,
                "label": mistake.label,
                "predicted": mistake.predicted,
                "probability": mistake.probability,
                "thumbnail": picture,
            }
        )
    return entries


def thumbnail(data: bytes, *, side: int = THUMBNAIL_SIDE) -> str:
    """Return the image in `data` as a JPEG ``data:`` URI, at most `side` pixels wide and high, upright.

    Raises `ImageError` where it does not decode.
    """
    return "data:image/jpeg;base64," + base64.b64encode(small_jpeg(data, side=side, quality=80)).decode("ascii")
