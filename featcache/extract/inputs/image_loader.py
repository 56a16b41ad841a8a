"""Images on their way to the engines of one thread: one decode for all that see an image alike, views, bursts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from featcache.extract.computed import ComputedRows, StageClock
from featcache.extract.inputs.interface import Extractor, Loader, columns_of, key_rows
from featcache.images.load import decode, resize_crop, upright_size
from featcache.images.view_spec import ViewSpec
from featcache.images.views import draw_view

if TYPE_CHECKING:
    from featcache.engines import Engine

Columns = Callable[[Extractor, npt.NDArray[np.uint8], int], dict[str, npt.NDArray[Any]]]


def image_columns(extractor: Extractor, pixels: npt.NDArray[np.uint8], count: int) -> dict[str, npt.NDArray[Any]]:
    """Return, by the name of each column, the rows of `count` images, all views of one after another in `pixels`.

    `pixels` may be longer, so that the last run of the engine need not be padded. Raises as `columns_of`.
    """
    engine = cast("Engine", extractor.engine)
    rows = count * extractor.recipe.views
    runs = [engine.run(pixels[start : start + engine.batch_size]) for start in range(0, rows, engine.batch_size)]
    values = []
    for parts in zip(*runs, strict=True):
        values.append((np.concatenate(parts) if len(parts) > 1 else parts[0])[:rows])
    return columns_of(extractor, values)


class ImageLoader(Loader):
    """Images that are decoded once for all extractors that see them alike.

    Each worker thread carries its own images the whole way: it decodes and resizes into the slots of its own batch,
    then runs the network. `columns`: what becomes of a batch's pixels, by default rows.
    """

    def __init__(self, extractors: Sequence[Extractor], *, burst: int, columns: Columns = image_columns) -> None:
        self._batches = [_Batch(number, extractor, columns, burst=burst) for number, extractor in enumerate(extractors)]
        self.room = min(batch.free for batch in self._batches)

    def load(self, data: bytes, digest: bytes, numbers: Sequence[int], clock: StageClock) -> None:
        """Decode an image into the next slot of every batch that wants it; raises `ImageError`."""
        batches = [self._batches[number] for number in numbers]
        slots = {batch.number: batch.slot() for batch in batches}
        shared: dict[ViewSpec, list[_Batch]] = {}
        for batch in batches:
            shared.setdefault(batch.spec, []).append(batch)
        todo = [(spec, place, view) for spec in shared for place, view in enumerate(spec.views)]
        for decoder, min_side in dict.fromkeys((spec.decoder, spec.min_side(view)) for spec, _, view in todo):
            pixels = decode(data, decoder=decoder, min_side=min_side, reuse=True)
            full_size = None if min_side is None else upright_size(data)
            clock.stop("decode")
            for spec, place, view in todo:
                if (spec.decoder, spec.min_side(view)) == (decoder, min_side):
                    drawn = draw_view(spec.view_seed, digest, view)
                    out = slots[shared[spec][0].number][place]
                    resize_crop(pixels, spec.preprocessing, decoder=decoder, view=drawn, full_size=full_size, out=out)
            clock.stop("resize")
        for users in shared.values():
            for batch in users:
                if batch is not users[0]:
                    slots[batch.number][...] = slots[users[0].number]
                batch.push(digest)

    def ready(self) -> Iterator[ComputedRows]:
        """Compute the batches that are full."""
        yield from (batch.compute() for batch in self._batches if not batch.free)
        self.room = min(batch.free for batch in self._batches)

    def rest(self) -> Iterator[ComputedRows]:
        """Compute the batches that are partly full."""
        yield from (batch.compute() for batch in self._batches if batch.count)


class _Batch:
    """One worker's images for one extractor: as many as fill some whole runs of the engine with all their views.

    Runs follow one another in bursts: the network's weights and code are then in the processor's caches for all of them
    but the first, where a decode between two runs would drive them out.
    """

    def __init__(self, number: int, extractor: Extractor, columns: Columns, *, burst: int) -> None:
        self.number, self._extractor, self._columns = number, extractor, columns
        self.spec = ViewSpec.of(extractor.recipe)
        size, views = self.spec.preprocessing, len(self.spec.views)
        batch_size = cast("Engine", extractor.engine).batch_size
        whole = batch_size // math.gcd(batch_size, views)
        self.capacity = -(-burst // (whole * views)) * whole
        self._pixels = np.zeros((self.capacity * views, size.height, size.width, 3), dtype=np.uint8)
        self._keys: list[bytes] = []

    @property
    def count(self) -> int:
        """How many images are in here."""
        return len(self._keys)

    @property
    def free(self) -> int:
        """How many more images fit."""
        return self.capacity - len(self._keys)

    def slot(self) -> npt.NDArray[np.uint8]:
        """Return the pixels (views, height, width, 3) of the next image, to be written to."""
        views = len(self.spec.views)
        first = len(self._keys) * views
        return self._pixels[first : first + views]

    def push(self, key: bytes) -> None:
        """Count the image in `slot` in."""
        self._keys.append(key)

    def compute(self) -> ComputedRows:
        """Return the rows of the images in here, which are forgotten."""
        # The last run may be partly filled: the slots behind hold older images, whose rows are thrown away.
        columns = self._columns(self._extractor, self._pixels, self.count)
        keys = key_rows(self._keys)
        self._keys.clear()
        return ComputedRows(self.number, keys, columns)
