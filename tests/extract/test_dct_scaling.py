"""Reduced decodes of large JPEGs: taken only where the rows stay what they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fake import SIZE, fake_recipe
from PIL import Image

from featcache.engines import Engine, Features, Images
from featcache.engines.precision import check_images
from featcache.errors import InputError
from featcache.extract.dct_scaling import dct_scaling_cosine, require_dct_scaling
from featcache.images.load import load_image, reduced_side

PREPROCESSING = fake_recipe().preprocessing


class Pixels(Engine):
    """Rows are the pixels themselves, or only how they differ from their neighbours, which is all noise to a decode."""

    name = "torch"
    version = "2"
    precision = "fp32"
    batch_size = 4
    height = width = SIZE
    columns = (("features", (SIZE * SIZE * 3,)),)
    workers = 1

    def __init__(self, *, differences: bool) -> None:
        self._differences = differences

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        values = batch.astype(np.float32)
        if self._differences:
            values = values * 2 - np.roll(values, 1, axis=1) - np.roll(values, 1, axis=2)
            values = np.sign(values) * np.abs(values) ** 0.1
        return (values.reshape(len(batch), -1),)

    def _release(self) -> None:
        """Nothing is held."""


def test_rows_that_follow_the_picture_are_kept() -> None:
    engine = Pixels(differences=False)
    cosine = dct_scaling_cosine(engine, engine.run, PREPROCESSING)
    assert 0.999 <= cosine < 1  # less than 1: the pixels do differ
    require_dct_scaling(engine, engine.run, PREPROCESSING)


def test_rows_that_hang_on_the_last_grey_level_are_refused() -> None:
    engine = Pixels(differences=True)
    assert dct_scaling_cosine(engine, engine.run, PREPROCESSING) < 0.999
    with pytest.raises(InputError, match=r"at least 0.999.*build without dct_scaling"):
        require_dct_scaling(engine, engine.run, PREPROCESSING)


def test_what_the_precision_costs_counts_too() -> None:
    engine = Pixels(differences=False)

    def exact(images: Images) -> tuple[Features, ...]:  # as far from the engine's rows as a rough precision is
        rows = engine.run(images)[0].copy()
        rows[:, ::2] *= 0.9
        return (rows,)

    assert dct_scaling_cosine(engine, exact, PREPROCESSING) < 0.999
    with pytest.raises(InputError, match=r"keep a cosine of at least 0\.999"):
        require_dct_scaling(engine, exact, PREPROCESSING)


@pytest.mark.parametrize("decoder", ["fast", "pillow"])
def test_the_check_does_reduce(decoder: str) -> None:
    short = 2 * reduced_side(PREPROCESSING)
    buffer = io.BytesIO()
    Image.fromarray(check_images(short, short * 4 // 3)[1]).save(buffer, "jpeg", quality=92)
    full = load_image(buffer.getvalue(), PREPROCESSING, decoder=decoder)  # type: ignore[arg-type]
    reduced = load_image(buffer.getvalue(), PREPROCESSING, decoder=decoder, dct_scaling=True)  # type: ignore[arg-type]
    assert not np.array_equal(full, reduced)
    assert np.abs(full.astype(int) - reduced).mean() < 4
