"""Whether large JPEGs may be decoded at a reduced scale: where the rows stay what they are, checked once per Recipe."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from featcache.engines import Engine, Features, Images
from featcache.engines.precision import MIN_COSINE, check_images, lowest_cosine
from featcache.errors import InputError
from featcache.images.load import load_image, reduced_side
from featcache.recipe import Decoder, Preprocessing

Reference = Callable[[Images], Sequence[Features]]


def dct_scaling_cosine(
    engine: Engine, reference: Reference, preprocessing: Preprocessing, *, decoder: Decoder = "fast"
) -> float:
    """Return the lowest cosine, over all outputs of eight check images, between two rows of an image.

    One is the engine's, of a reduced decode; the other that of `reference` (pixels (n, height, width, 3) uint8 → rows
    in fp32), of a full decode: what reducing costs and what the engine's precision costs add up in a row.

    The images are as large as is reduced by a half, the hardest case: sharp to the last pixel, where a photo that is
    reduced further has been softened by its lens and sensor.
    """
    short = 2 * reduced_side(preprocessing)
    full, reduced = [], []
    for pixels in check_images(short, short * 4 // 3):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "jpeg", quality=92)
        data = buffer.getvalue()
        full.append(load_image(data, preprocessing, decoder=decoder))
        reduced.append(load_image(data, preprocessing, decoder=decoder, dct_scaling=True))
    return lowest_cosine(engine.run(np.stack(reduced)), reference(np.stack(full)))


def require_dct_scaling(
    engine: Engine, reference: Reference, preprocessing: Preprocessing, *, decoder: Decoder = "fast"
) -> None:
    """Raise `InputError` where the rows of reduced decodes keep a cosine of less than 0.999."""
    cosine = dct_scaling_cosine(engine, reference, preprocessing, decoder=decoder)
    if cosine < MIN_COSINE:
        raise InputError(
            f"rows of JPEGs decoded at a reduced scale must keep a cosine of at least {MIN_COSINE} to fp32 rows of "
            f"full decodes, this network's keep {cosine:.5f} on the check images in {engine.precision}; build without "
            "dct_scaling" + ("" if engine.precision == "fp32" else ", or with precision='fp32'")
        )
