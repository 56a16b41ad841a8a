"""The student's pixels: the very views the teacher answered for, drawn again from the same seed.

A teacher that sees one crop and a student that sees another teach each other little (Beyer et al. 2022, "Knowledge
distillation: a good teacher is patient and consistent"). A view is a function of the image's digest, the cache's
`view_seed` and the view's index, so the student's copy of it is rendered at its own input size whenever it is needed:
once into a memory-mapped file, or, where the disk has no room for that, anew each time. The pixels are the same.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.distillation.join import Images
from featcache.errors import ImageError, InputError
from featcache.images.load import decode, resize_crop
from featcache.images.read import read_image_bytes
from featcache.images.view_spec import ViewSpec
from featcache.images.views import draw_view
from featcache.system.files import write_atomically
from featcache.system.json import canonical_json, parse_json
from featcache.system.threads import one_torch_thread, processor_count

_CHUNK = 64
_SPARE_BYTES = 1 << 30  # left free on the disk beside the rendered views


class PixelSource(Protocol):
    """Where a step's pixels come from."""

    def batch(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return pixels (b, height, width, 3) uint8 of image `positions[i]` in view `views[i]`."""


def _spec_json(spec: ViewSpec) -> dict[str, Any]:
    return {
        "preprocessing": spec.preprocessing.to_json(),
        "views": list(spec.views),
        "view_seed": spec.view_seed,
        "decoder": spec.decoder,
        "dct_scaling": spec.dct_scaling,
    }


def _render(spec: ViewSpec, path: str, digest: bytes, slots: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
    """Write the views at positions `slots` of `spec` of the image at `path` into `out` (len(slots), height, width, 3).

    Raises `InputError` where the file is no longer the image with that digest.
    """
    try:
        data = read_image_bytes(path, digest=digest)
        decoded_side: int | None = -1  # of no decode yet
        for row, slot in enumerate(slots):
            side = spec.min_side(spec.views[slot])
            if side != decoded_side:
                pixels, decoded_side = decode(data, decoder=spec.decoder, min_side=side, reuse=True), side
            drawn = draw_view(spec.view_seed, digest, spec.views[slot])
            resize_crop(pixels, spec.preprocessing, decoder=spec.decoder, view=drawn, out=out[row])
    except ImageError as error:
        raise InputError(f"{path!r} must be the image that the teacher saw, got: {error}; run it again") from error


class RenderedViews:
    """Views in a memory-mapped file: pixels (n, views, height, width, 3) uint8."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def batch(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return pixels (b, height, width, 3) uint8 of image `positions[i]` in view `views[i]`."""
        return np.asarray(self._pixels[positions, views])


class StreamedViews:
    """Views decoded whenever they are asked for, by as many threads as there are processors."""

    def __init__(self, images: Images, spec: ViewSpec) -> None:
        self._images, self._spec = images, spec

    def batch(self, positions: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Return pixels (b, height, width, 3) uint8 of image `positions[i]` in view `views[i]`."""
        size = self._spec.preprocessing
        pixels = np.empty((len(positions), size.height, size.width, 3), dtype=np.uint8)

        def render(row: int) -> None:
            at = int(positions[row])
            digest = self._images.digests[at].tobytes()
            _render(self._spec, self._images.paths[at], digest, [int(views[row])], pixels[row : row + 1])

        with one_torch_thread(), ThreadPoolExecutor(processor_count()) as pool:
            list(pool.map(render, range(len(positions))))
        return pixels


def rendered_bytes(n: int, spec: ViewSpec) -> int:
    """Return the bytes of all views of n images."""
    return n * len(spec.views) * spec.preprocessing.height * spec.preprocessing.width * 3


def replay_views(place: Path, images: Images, spec: ViewSpec) -> PixelSource:
    """Return the views of `images`, rendered into the file `place` unless it holds them or the disk has no room."""
    shape = (len(images), len(spec.views), spec.preprocessing.height, spec.preprocessing.width, 3)
    identity = {
        "images": hashlib.sha256(np.ascontiguousarray(images.digests).tobytes()).hexdigest(),
        **_spec_json(spec),
    }
    note = place.with_suffix(".json")
    size = rendered_bytes(len(images), spec)
    if note.exists() and place.exists() and place.stat().st_size == size and _read(note) == identity:
        return RenderedViews(np.memmap(place, dtype=np.uint8, mode="r", shape=shape))
    note.unlink(missing_ok=True)
    place.unlink(missing_ok=True)
    if size + _SPARE_BYTES > shutil.disk_usage(place.parent).free:
        return StreamedViews(images, spec)
    pixels = np.memmap(place, dtype=np.uint8, mode="w+", shape=shape)
    slots = range(len(spec.views))

    def render(index: int) -> None:
        _render(spec, images.paths[index], images.digests[index].tobytes(), slots, pixels[index])

    with (
        one_torch_thread(),
        ThreadPoolExecutor(processor_count()) as pool,
        tqdm(total=len(images), desc="views", unit="image", disable=None) as bar,
    ):
        for start in range(0, len(images), _CHUNK):
            stop = min(len(images), start + _CHUNK)
            list(pool.map(render, range(start, stop)))
            bar.update(stop - start)
    pixels.flush()
    write_atomically(note, canonical_json(identity).encode())
    return RenderedViews(pixels)


def _read(note: Path) -> Any:
    try:
        return parse_json(note.read_bytes())
    except ValueError:
        return None  # a note cut short: the views are rendered again
