"""The three losses as elementwise work on a block of logits: value, residual, and the constants of their duals.

Each loss of a row is l(u) = psi(u) - <y, u> with a convex psi: logsumexp (softmax), sum of log(1 + exp) (sigmoid),
|u|^2 / 2 (squared, to which |y|^2 / 2 is added). The residual is r = psi'(u) - y, and the convex conjugate satisfies
l*(r) = <r, u> - l(u) at that r, which is all a duality gap needs (see `certificate`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import InputError
from featcache.heads.solvers.problem import Problem
from featcache.heads.solvers.rows import CHUNK_ROWS, Float32, Float64, map_chunks


def negative_entropy(p: Float64) -> Float64:
    """Return p log p elementwise, 0 at 0."""
    result: Float64 = p * np.log(np.maximum(p, 1e-300))
    return result


def softmax_in_place(logits: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Turn `logits` ``(m, k)`` into probabilities and return their logsumexp ``(m,)`` float64.

    `weights` ``(m,)``: what each row's probabilities are multiplied by, on the way.
    """
    top = logits.max(axis=1, keepdims=True)
    logits -= top
    np.exp(logits, out=logits)
    total = logits @ np.ones(logits.shape[1], dtype=logits.dtype)  # a third of the time of sum(axis=1)
    factor = 1.0 / total if weights is None else weights / total
    logits *= factor[:, None]
    result: NDArray[np.float64] = np.log(total, dtype=np.float64) + top[:, 0]
    return result


def _softmax_curvature(logits: NDArray[Any], weights: NDArray[Any]) -> Float64:
    """Return ``sum_i w_i (diag(p_i) - p_i p_i')`` for the softmax p of `logits`, which are overwritten."""
    softmax_in_place(logits)
    scaled = logits * weights[:, None]
    outer: Float64 = -(scaled.T @ logits).astype(np.float64)
    outer[np.diag_indices(len(outer))] += scaled.sum(axis=0, dtype=np.float64)
    return outer


class Loss:
    """The data term of one problem: row weights that sum to one, targets, and the loss between logits and targets."""

    def __init__(self, problem: Problem, weights: Float32) -> None:
        """Keep the targets in the form the inner loop needs."""
        self.kind = problem.loss
        self.n_outputs = problem.n_outputs
        self.weights = weights
        self._labels: NDArray[np.int64] | None = None
        self._targets: Float32 | None = None
        if np.ndim(problem.targets) == 1:
            self._labels = np.asarray(problem.targets, dtype=np.int64)
        else:
            self._targets = np.ascontiguousarray(problem.targets, dtype=np.float32)
            if self.kind == "softmax":
                self._targets = self._targets / self._targets.sum(axis=1, keepdims=True)
        self._distillation = problem.distillation
        self._teacher: Float32 | None = None
        if problem.distillation is not None:
            teacher = np.asarray(problem.distillation.teacher, dtype=np.float32)
            self._teacher = teacher / teacher.sum(axis=1, keepdims=True)

        self._summarise()

    def _summarise(self) -> None:
        """Add up the constants of the dual: mean targets, mean negative entropies, the share of labelled rows."""
        k = self.n_outputs
        total, entropy, squares = np.zeros(k), 0.0, 0.0
        teacher_mean, teacher_entropy = np.zeros(k), 0.0
        for start in range(0, len(self.weights), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, len(self.weights))
            weights = self.weights[start:stop].astype(np.float64)
            if self._labels is not None:
                labels = self._labels[start:stop]
                total += np.bincount(labels[labels >= 0], weights[labels >= 0], minlength=k)
            else:
                y = self.targets(start, stop).astype(np.float64)
                total += weights @ y
                if self.kind == "squared":
                    squares += 0.5 * float(weights @ (y * y).sum(axis=1))
                elif self.kind == "sigmoid":
                    entropy += float(weights @ (negative_entropy(y) + negative_entropy(1.0 - y)).sum(axis=1))
                else:
                    entropy += float(weights @ negative_entropy(y).sum(axis=1))
            if self._teacher is not None:
                t = self._opinion(start, stop, np.float64)
                teacher_mean += weights @ t
                teacher_entropy -= float(weights @ negative_entropy(t).sum(axis=1))
        self.mean_target: Float64 = total
        self._teacher_mean, self._teacher_entropy = teacher_mean, teacher_entropy
        self._squares = squares
        self._labelled_share = float(total.sum()) if self.kind == "softmax" else 1.0
        # l*(0) is minus the least value of the loss of a row: the negative entropy of a soft target, else zero
        self.conjugate_at_zero = entropy
        if self.kind == "softmax" and self._teacher is None:
            empty = np.flatnonzero(total <= 0)
            if len(empty):
                raise InputError(f"every class needs a training row of positive weight, class {int(empty[0])} has none")
        if self.kind == "softmax" and self._teacher is not None and (total + teacher_mean).min() <= 0:
            raise InputError("every class needs a training row or some probability from the teacher")
        if self.kind == "sigmoid" and (total.min() <= 0 or total.max() >= 1.0 - 1e-12):
            output = int(np.argmax((total <= 0) | (total >= 1.0 - 1e-12)))
            raise InputError(f"every label needs positive and negative training rows, label {output} has only one kind")

    @property
    def distils(self) -> bool:
        """Return whether a teacher takes part."""
        return self._distillation is not None

    def labelled(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return which of some rows ``(m,)`` have a label."""
        assert self._labels is not None
        return self._labels[start:stop] >= 0

    def of_rows(self, rows: slice) -> Loss:
        """Return the loss of some rows alone, to be added to that of the others: its constants remain those of all."""
        part = Loss.__new__(Loss)
        part.__dict__.update(self.__dict__)
        part.weights = self.weights[rows]
        part._labels = None if self._labels is None else self._labels[rows]
        part._targets = None if self._targets is None else self._targets[rows]
        part._teacher = None if self._teacher is None else self._teacher[rows]
        # the teacher of all rows is not carried along
        part._distillation = None if self._distillation is None else replace(self._distillation, teacher=np.empty(0))
        return part

    @property
    def mean_mixed_target(self) -> Float64:
        """Return the weighted mean ``(k,)`` of `mixed_targets` over all rows."""
        if self._distillation is None:
            return self.mean_target
        alpha, temperature = self._distillation.alpha, self._distillation.temperature
        return np.asarray((1.0 - alpha) * self.mean_target + alpha * temperature * self._teacher_mean)

    @property
    def labelled_share(self) -> float:
        """Return the weight of the labelled rows among all."""
        return self._labelled_share

    @property
    def typical_curvature(self) -> float:
        """Return the mean second derivative of a row's loss in one logit when predictions are spread evenly."""
        k = self.n_outputs
        return {"softmax": (1.0 - 1.0 / k) / k, "sigmoid": 0.25, "squared": 1.0}[self.kind]

    @property
    def largest_curvature(self) -> float:
        """Return an upper bound on the second derivative of a row's loss along any direction (Boehning 1992)."""
        return {"softmax": 0.5, "sigmoid": 0.25, "squared": 1.0}[self.kind]

    def targets(self, start: int, stop: int) -> Float32:
        """Return the targets y of some rows ``(m, k)`` float32, one-hot where they are class numbers (-1: all zero)."""
        if self._targets is not None:
            return self._targets[start:stop]
        assert self._labels is not None
        labels = self._labels[start:stop]
        result = np.zeros((len(labels), self.n_outputs), dtype=np.float32)
        labelled = np.flatnonzero(labels >= 0)
        result[labelled, labels[labelled]] = 1.0
        return result

    def residual(self, logits: NDArray[Any], first_row: int) -> float:
        """Return the weighted loss of some rows, overwriting their `logits` ``(m, k)`` by weighted residuals."""

        def step(start: int, stop: int) -> float:
            u = logits[start:stop]
            a, b = first_row + start, first_row + stop
            weights = self.weights[a:b]
            losses = self._chunk(u, a, b, weights)
            return float(losses @ weights.astype(np.float64))

        return map_chunks(len(logits), logits.shape[1], step)

    def _chunk(self, u: NDArray[Any], a: int, b: int, weights: Float32) -> Float64:
        """Return the losses of rows a to b ``(m,)`` float64, overwriting their logits by weighted residuals."""
        if self.kind == "softmax" and self._labels is not None and self._distillation is None:
            rows, labels = np.arange(b - a), self._labels[a:b]
            chosen = u[rows, labels].astype(np.float64)
            losses: Float64 = softmax_in_place(u, weights) - chosen
            u[rows, labels] -= weights
            return losses
        losses = self._plain_chunk(u, a, b)
        u *= weights[:, None]
        return losses

    def _plain_chunk(self, u: NDArray[Any], a: int, b: int) -> Float64:
        """Return the losses of rows a to b ``(m,)`` float64, overwriting their logits by residuals."""
        if self.kind == "squared":
            assert self._targets is not None
            u -= self._targets[a:b]
            squares: Float64 = np.einsum("ij,ij->i", u, u, dtype=np.float64)
            return 0.5 * squares
        if self.kind == "sigmoid":
            assert self._targets is not None
            return self._sigmoid_chunk(u, self._targets[a:b])
        if self._distillation is not None:
            return self._distilled_chunk(u, a, b)
        assert self._targets is not None
        targets = self._targets[a:b]
        inner: Float64 = np.einsum("ij,ij->i", u, targets, dtype=np.float64)
        losses: Float64 = softmax_in_place(u) - inner
        u -= targets
        return losses

    def _opinion(self, a: int, b: int, kind: type[np.floating[Any]]) -> NDArray[Any]:
        """Return the teacher's probabilities of rows a to b ``(m, k)`` of dtype `kind`, their sums 1 to its rounding.

        A sum that is off by float32's rounding leaves a bias gradient that no bias removes: no certificate below 1e-7.
        """
        assert self._teacher is not None
        teacher: NDArray[Any] = self._teacher[a:b]
        if kind is np.float32:
            return teacher
        wide = teacher.astype(kind)
        wide /= wide.sum(axis=1, keepdims=True)
        return wide

    @staticmethod
    def _sigmoid_chunk(u: NDArray[Any], targets: Float32) -> Float64:
        inner = np.einsum("ij,ij->i", u, targets, dtype=np.float64)
        decay = np.exp(-np.abs(u))  # in (0, 1]: never overflows
        losses = np.maximum(u, 0.0).sum(axis=1, dtype=np.float64) + np.log1p(decay).sum(axis=1, dtype=np.float64)
        positive = u >= 0.0
        np.divide(np.where(positive, 1.0, decay), 1.0 + decay, out=u, casting="same_kind")
        u -= targets
        result: Float64 = losses - inner
        return result

    def _distilled_chunk(self, u: NDArray[Any], a: int, b: int) -> Float64:
        """Return (1 - alpha) CE(y, softmax(u)) + alpha T^2 KL(teacher || softmax(u / T)), residual in place."""
        assert self._distillation is not None and self._teacher is not None and self._labels is not None
        alpha, temperature = self._distillation.alpha, self._distillation.temperature
        teacher, labels = self._opinion(a, b, u.dtype.type), self._labels[a:b]
        labelled = np.flatnonzero(labels >= 0)
        soft = u / u.dtype.type(temperature)
        inner = np.einsum("ij,ij->i", soft, teacher, dtype=np.float64)
        entropy = -np.einsum(
            "ij,ij->i", teacher, np.log(np.maximum(teacher, np.finfo(np.float32).tiny)), dtype=np.float64
        )
        divergence = softmax_in_place(soft) - inner - entropy
        chosen = u[labelled, labels[labelled]].astype(np.float64)
        losses: Float64 = alpha * temperature**2 * divergence
        cross = softmax_in_place(u)
        losses[labelled] += (1.0 - alpha) * (cross[labelled] - chosen)
        u[labelled, labels[labelled]] -= 1.0
        hard = np.zeros(len(labels), dtype=u.dtype)
        hard[labelled] = 1.0 - alpha
        u *= hard[:, None]
        soft -= teacher
        soft *= u.dtype.type(alpha * temperature)
        u += soft
        return losses

    def constant_dual(self, bias_gradient: Float64) -> tuple[float, Float64, float]:
        """Return (t, q, c): how a residual whose weighted sum is `bias_gradient` is mixed with a constant prediction.

        ``(1 - t) r_i + t (psi'_q - y_i)`` sums to zero over the rows for the prediction q ``(k,)`` of the labelled
        term, and c is the weighted conjugate at that constant point.
        """
        if self.kind == "sigmoid":
            room = np.minimum(self.mean_target, 1.0 - self.mean_target)
            share = self._share(np.abs(bias_gradient) / room)
            q = np.clip(self.mean_target - (1.0 - share) / share * bias_gradient, 0.0, 1.0)
            return share, q, float((negative_entropy(q) + negative_entropy(1.0 - q)).sum())
        if self._distillation is None:
            share = self._share(np.maximum(bias_gradient, 0.0) / self.mean_target)
            q = np.maximum(self.mean_target - (1.0 - share) / share * bias_gradient, 0.0)
            return share, q, float(negative_entropy(q).sum())
        alpha, temperature = self._distillation.alpha, self._distillation.temperature
        factor = alpha * temperature
        share = self._share(np.maximum(bias_gradient, 0.0) / np.maximum(factor * self._teacher_mean, 1e-30))
        soft = np.maximum(self._teacher_mean - (1.0 - share) / (share * factor) * bias_gradient, 0.0)
        q = self.mean_target / max(self._labelled_share, 1e-30)
        hard_term = (1.0 - alpha) * self._labelled_share * float(negative_entropy(q).sum())
        return (
            share,
            (1.0 - alpha) * q,
            hard_term + alpha * temperature**2 * (float(negative_entropy(soft).sum()) + self._teacher_entropy),
        )

    @staticmethod
    def _share(ratio: Float64) -> float:
        """Return the least mixing share t with ``t / (1 - t)`` just above the largest of `ratio`, never zero."""
        odds = 1.0001 * float(ratio.max()) + 1e-14
        return odds / (1.0 + odds)

    def bias_curvature(self, logits: NDArray[Any], first_row: int) -> Float64:
        """Return the Hessian ``(k, k)`` of the weighted loss of some rows in the bias; overwrites `logits`."""
        weights = self.weights[first_row : first_row + len(logits)].astype(logits.dtype)
        if self.kind == "squared":
            return np.eye(self.n_outputs) * float(weights.sum(dtype=np.float64))
        if self.kind == "sigmoid":
            decay = np.exp(-np.abs(logits))
            return np.diag((weights @ (decay / (1.0 + decay) ** 2)).astype(np.float64))
        result = np.zeros((self.n_outputs, self.n_outputs))
        if self._distillation is not None:
            alpha, temperature = self._distillation.alpha, self._distillation.temperature
            result += _softmax_curvature(logits / logits.dtype.type(temperature), alpha * weights)
            assert self._labels is not None
            labelled = self._labels[first_row : first_row + len(logits)] >= 0
            weights = weights * ((1.0 - alpha) * labelled).astype(logits.dtype)
        return result + _softmax_curvature(logits, weights)

    def softmax_terms(self) -> list[tuple[Float32, float]]:
        """Return the row weights ``(n, 1)`` and the temperature of each softmax whose curvature adds to the loss's."""
        weights = self.weights[:, None]
        if self._distillation is None:
            return [(weights, 1.0)]
        assert self._labels is not None
        alpha = np.float32(self._distillation.alpha)
        labelled = (self._labels >= 0).astype(np.float32)[:, None]
        return [(alpha * weights, self._distillation.temperature), ((1 - alpha) * labelled * weights, 1.0)]

    def initial_bias(self) -> Float32:
        """Return the bias ``(n_outputs,)`` float32 that is best when all weights are zero (near it if distilling)."""
        if self.kind == "squared":
            return self.mean_target.astype(np.float32)
        if self.kind == "sigmoid":
            odds: Float32 = np.log(self.mean_target / (1.0 - self.mean_target)).astype(np.float32)
            return odds
        mean = self.mean_target
        if self._distillation is not None:
            alpha = self._distillation.alpha
            mean = (1.0 - alpha) * mean + alpha * self._teacher_mean
        prior: Float32 = np.log(np.maximum(mean / mean.sum(), 1e-30)).astype(np.float32)
        return prior

    def mixed_targets(self, start: int, stop: int) -> NDArray[Any]:
        """Return the targets of some rows ``(m, k)``, the teacher's mixed in: minus their residual at zero logits.

        Up to what is the same for all rows, which centred columns cancel.
        """
        if self._distillation is None:
            return self.targets(start, stop)
        alpha, temperature = self._distillation.alpha, self._distillation.temperature
        assert self._teacher is not None
        return (1.0 - alpha) * self.targets(start, stop) + alpha * temperature * self._teacher[start:stop]
