"""What every text engine must do, as tests that a file of yours can run on an engine of its own.

    class TestMine(TextEngineContract):
        def open(self) -> TextEngine:
            return MyTextEngine(...)

`tests/engines/test_text_engines.py` does that for featcache's engines.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from featcache.engines import PRECISIONS, Features
from featcache.engines.text import TextEngine
from featcache.engines.text.interface import TokenIds
from featcache.errors import InputError


class TextEngineContract:
    """The laws of `TextEngine`; derive a class whose name begins with ``Test`` and say in `open` how yours is made.

    `least_id`, `most_id`: bounds of the ids that a text may have.
    """

    least_id = 4
    most_id = 99

    def open(self) -> TextEngine:
        """Return a new engine, whose texts may have at least 40 tokens."""
        raise NotImplementedError("say how your engine is opened")

    @pytest.fixture
    def engine(self) -> Iterator[TextEngine]:
        """An open engine; override it with one of a wider scope where opening takes long."""
        with self.open() as opened:
            yield opened

    def texts(self) -> list[TokenIds]:
        """Return texts of many lengths, several of each bucket, more of one than its batch holds."""
        rng = np.random.default_rng(0)
        lengths = [1, 2, 3, 7, 8, 9, 17, 23, 33, 39, 40, 40, *[5, 6] * 40]
        return [rng.integers(self.least_id, self.most_id + 1, length) for length in lengths]

    def test_engine_says_what_it_is(self, engine: TextEngine) -> None:
        """Name, version and precision go into Recipes; columns have distinct names."""
        assert engine.name and engine.version and engine.precision in PRECISIONS and engine.workers >= 1
        names = [name for name, _ in engine.columns]
        assert names and len(set(names)) == len(names)

    def test_rows_have_the_shapes_of_the_columns(self, engine: TextEngine) -> None:
        """One float32 array for each column, one finite row for each text, however many there are."""
        for texts in (self.texts(), self.texts()[:1], []):
            rows = engine.run(texts)
            assert [values.shape for values in rows] == [(len(texts), *shape) for _, shape in engine.columns]
            assert all(values.dtype == np.float32 and np.isfinite(values).all() for values in rows)

    def test_rows_are_those_of_their_texts(self, engine: TextEngine) -> None:
        """Other ids, and their order, give other rows: an engine that ignores its input would pass everything else."""
        text = np.array([5, 6, 7, 8])
        rows = engine.run([text, text[::-1].copy(), text[:3]])[0]
        assert len(np.unique(rows, axis=0)) == 3

    def test_rows_do_not_depend_on_neighbours_or_order(self, engine: TextEngine) -> None:
        """The same bits alone, in any order, beside longer texts and shorter ones, in a batch whole or partly empty."""
        texts = self.texts()
        whole = engine.run(texts)
        order = np.random.default_rng(1).permutation(len(texts))
        _assert_same(engine.run([texts[index] for index in order]), tuple(values[order] for values in whole))
        for index in range(13):
            _assert_same(engine.run([texts[index]]), tuple(values[index : index + 1] for values in whole))

    def test_rows_are_the_callers_own(self, engine: TextEngine) -> None:
        """A later run writes into none of the arrays that an earlier one returned, and no run into its texts."""
        texts = self.texts()[:12]
        before = [text.copy() for text in texts]
        rows = engine.run(texts)
        kept = tuple(values.copy() for values in rows)
        engine.run(texts[::-1])
        _assert_same(rows, kept)
        assert all(np.array_equal(text, copy) for text, copy in zip(texts, before, strict=True))

    def test_threads_share_an_engine(self, engine: TextEngine) -> None:
        """Runs at the same time give what they give one after another."""
        texts = self.texts()[:12]
        alone = engine.run(texts)
        rows_by_thread: dict[int, tuple[Features, ...]] = {}

        def run(number: int) -> None:
            rows_by_thread[number] = engine.run(texts)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(engine.workers + 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(rows_by_thread) == len(threads)
        for rows in rows_by_thread.values():
            _assert_same(rows, alone)

    def test_texts_of_no_token_or_too_many_are_refused(self, engine: TextEngine) -> None:
        """What came and what must come are named."""
        most = engine.buckets.max_length
        for length in (0, most + 1):
            with pytest.raises(InputError, match=rf"1 to {most} tokens, got one of {length}"):
                engine.run([np.full(length, self.least_id)])

    def test_closed_engine_refuses_to_run(self) -> None:
        """After the block, and after closing twice, it says that it is closed instead of waiting or crashing."""
        with self.open() as engine:
            engine.run(self.texts()[:1])
        engine.close()
        with pytest.raises(InputError, match="closed"):
            engine.run(self.texts()[:1])


def _assert_same(rows: tuple[Features, ...], wanted: tuple[Features, ...]) -> None:
    for values, expected in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(values, expected)
