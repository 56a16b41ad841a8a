"""What every inference engine must do, as tests that a file of yours can run on an engine of its own.

    class TestMine(EngineContract):
        def open(self) -> Engine:
            return MyEngine(...)

`tests/engines/test_engine_contract.py` does that for featcache's engines and for one that it writes itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from featcache.engines import PRECISIONS, Engine, Features, Images
from featcache.errors import InputError


class EngineContract:
    """The laws of `Engine`; derive a class whose name begins with ``Test`` and say in `open` how yours is made."""

    def open(self) -> Engine:
        """Return a new engine, of a batch size above 1 so that neighbours can be told apart."""
        raise NotImplementedError("say how your engine is opened")

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        """An open engine; override it with one of a wider scope where opening takes long."""
        with self.open() as opened:
            yield opened

    @staticmethod
    def images(engine: Engine) -> Images:
        """Return images of noise: two whole batches and half a one."""
        count = 2 * engine.batch_size + max(1, engine.batch_size // 2)
        return np.random.default_rng(0).integers(0, 256, (count, engine.height, engine.width, 3), dtype=np.uint8)

    def test_engine_says_what_it_is(self, engine: Engine) -> None:
        """Name, version and precision go into Recipes; columns have distinct names."""
        assert engine.name and engine.version and engine.precision in PRECISIONS
        assert min(engine.batch_size, engine.height, engine.width, engine.workers) >= 1
        names = [name for name, _ in engine.columns]
        assert names and len(set(names)) == len(names)

    @pytest.mark.parametrize("count", ["none", "one", "batch", "more"])
    def test_rows_have_the_shapes_of_the_columns(self, engine: Engine, count: str) -> None:
        """One float32 array for each column, one finite row for each image, however many there are."""
        images = self.images(engine)
        images = images[: {"none": 0, "one": 1, "batch": engine.batch_size, "more": len(images)}[count]]
        rows = engine.run(images)
        assert [values.shape for values in rows] == [(len(images), *shape) for _, shape in engine.columns]
        assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in rows)

    def test_rows_are_those_of_their_images(self, engine: Engine) -> None:
        """Other pixels give other rows: an engine that ignores its input would pass everything else."""
        (first, second) = (values[0] for values in (engine.run(self.images(engine)[[index]])[0] for index in (0, 1)))
        assert not np.array_equal(first, second)

    def test_rows_do_not_depend_on_neighbours_order_or_batch(self, engine: Engine) -> None:
        """The same bits alone, in any order, and at any place of a batch, whole or padded."""
        images = self.images(engine)
        whole = engine.run(images)
        order = np.random.default_rng(1).permutation(len(images))
        _assert_same(engine.run(images[order]), tuple(values[order] for values in whole))
        for index in (0, engine.batch_size - 1, len(images) - 1):
            _assert_same(engine.run(images[index : index + 1]), tuple(values[index : index + 1] for values in whole))

    def test_rows_are_the_callers_own(self, engine: Engine) -> None:
        """A later run writes into none of the arrays that an earlier one returned, and no run into its images."""
        images = self.images(engine)[: engine.batch_size]
        before = images.copy()
        rows = engine.run(images)
        kept = tuple(values.copy() for values in rows)
        engine.run(255 - images)
        _assert_same(rows, kept)
        np.testing.assert_array_equal(images, before)

    def test_images_need_not_lie_in_one_piece(self, engine: Engine) -> None:
        """Views with strides are images like any others."""
        images = self.images(engine)[: engine.batch_size]
        _assert_same(engine.run(images[:, :, ::-1]), engine.run(np.ascontiguousarray(images[:, :, ::-1])))

    def test_threads_share_an_engine(self, engine: Engine) -> None:
        """Runs at the same time give what they give one after another."""
        images = self.images(engine)
        alone = engine.run(images)
        rows_by_thread: dict[int, tuple[Features, ...]] = {}

        def run(number: int) -> None:
            rows_by_thread[number] = engine.run(images)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(engine.workers + 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(rows_by_thread) == len(threads)
        for rows in rows_by_thread.values():
            _assert_same(rows, alone)

    def test_images_of_another_shape_or_type_are_refused(self, engine: Engine) -> None:
        """What came and what must come are named."""
        wanted = rf"\(n, {engine.height}, {engine.width}, 3\) uint8"
        for shape in [(2, engine.height + 1, engine.width, 3), (2, 3, engine.height, engine.width), (engine.height, 3)]:
            with pytest.raises(InputError, match=wanted):
                engine.run(np.zeros(shape, dtype=np.uint8))
        with pytest.raises(InputError, match="float32"):
            engine.run(np.zeros((2, engine.height, engine.width, 3), dtype=np.float32))

    def test_closed_engine_refuses_to_run(self) -> None:
        """After the block, and after closing twice, it says that it is closed instead of waiting or crashing."""
        with self.open() as engine:
            images = self.images(engine)[:1]
            engine.run(images)
        engine.close()
        with pytest.raises(InputError, match="closed"):
            engine.run(images)


def _assert_same(rows: tuple[Features, ...], wanted: tuple[Features, ...]) -> None:
    for values, expected in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(values, expected)
