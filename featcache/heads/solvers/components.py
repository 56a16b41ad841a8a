"""The leading principal components of a problem's rows, and the problem on them alone: what is nearly all, cheaply."""

from __future__ import annotations

import dataclasses

import numpy as np

from featcache.heads.solvers.prepared import Prepared
from featcache.heads.solvers.problem import Solution
from featcache.heads.solvers.rows import Float32


def _orthonormal(columns: Float32) -> Float32:
    """Return an orthonormal basis of the columns' span, filled up where features of low rank leave fewer directions."""
    return np.asarray(np.linalg.qr(columns.astype(np.float64))[0], dtype=np.float32)


class Components:
    """A quarter of the directions of one prepared problem in memory: those in which its rows vary most.

    `basis` ``(d, r)`` is orthonormal, `values` ``(r,)`` the variance along each, ascending, `scores` ``(n, r)`` the
    rows in it. `rest_value` is the mean variance along the other directions, `share` the part of all variance that is
    in `basis`.
    """

    def __init__(self, prepared: Prepared) -> None:
        """Find them by block power iteration from fixed noise (Halko, Martinsson and Tropp 2011)."""
        matrix = prepared.rows.matrix
        d = matrix.shape[1]
        rank = min(32 * max(2, round(d / 4 / 32)), d)
        gram = prepared.gram.astype(np.float32)
        basis: Float32 = np.random.default_rng(0).standard_normal((d, rank), dtype=np.float32)
        for _ in range(4):
            basis = _orthonormal(gram @ basis)
        values, turn = np.linalg.eigh((basis.T @ (gram @ basis)).astype(np.float64))
        self._prepared = prepared
        self.basis: Float32 = np.ascontiguousarray(basis @ turn.astype(np.float32))
        self.values: Float32 = np.maximum(values, 0.0).astype(np.float32)
        total = float(np.trace(gram, dtype=np.float64))
        self.share = float(self.values.sum(dtype=np.float64)) / total if total > 0 else 1.0
        self.rest_value = max(1.0 - self.share, 0.0) * total / max(d - rank, 1)
        self.scores: Float32 = matrix @ self.basis
        prepared.passes += 0.5 * rank / d

    def problem(self) -> Prepared:
        """Return the problem on the scores instead of the features: another, whose solutions are near in objective."""
        return self._prepared.turned(self.scores, self.basis)

    def lift(self, solution: Solution) -> Solution:
        """Return `solution`, of `problem`, as weights on all features: the same logits, objective and penalty.

        Its gap remains that of `problem`: no solution within the components is better by more.
        """
        rows = self._prepared.rows
        weight: Float32 = solution.weight @ self.basis.T
        return dataclasses.replace(solution, weight=weight, mean=rows.mean, std=rows.std)
