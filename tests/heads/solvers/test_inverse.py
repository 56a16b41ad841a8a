"""The inverse by halves."""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.inverse import invert_positive_definite


def test_the_inverse_by_halves_is_the_inverse():
    rows = np.random.default_rng(0).normal(size=(600, 401)).astype(np.float32)
    matrix = rows.T @ rows / 600 + 0.1 * np.eye(401, dtype=np.float32)
    np.testing.assert_allclose(invert_positive_definite(matrix) @ matrix, np.eye(401), atol=1e-3)
