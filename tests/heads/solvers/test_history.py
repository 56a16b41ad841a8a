"""What limited-memory BFGS remembers: pairs that say something of the curvature, and no others."""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.history import History


def test_change_whose_squares_vanish_in_float32_is_left_out() -> None:
    """Such a step, near the minimum of separated classes, was a division by zero; the direction stays as it was."""
    history = History(scale=0.5)
    bias = np.zeros(1, dtype=np.float32)
    history.add(np.full((1, 2), 1e-3, np.float32), bias, np.full((1, 2), 1e-25, np.float32), bias)
    direction, bias_direction = history.direction(np.ones((1, 2), np.float32), bias)
    assert np.array_equal(direction, np.full((1, 2), 0.5, np.float32))
    assert np.array_equal(bias_direction, bias)


def test_newest_pair_sets_the_scale() -> None:
    """A gradient that changes by four times the step is answered with a quarter of it."""
    history = History(scale=1.0)
    bias = np.zeros(1, dtype=np.float32)
    history.add(np.float32([[1, 0]]), bias, np.float32([[4, 0]]), bias)
    assert np.allclose(history.direction(np.float32([[8, 8]]), bias)[0], [[2, 2]])
