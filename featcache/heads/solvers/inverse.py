"""The inverse of a positive definite matrix out of matrix products alone, which are what a BLAS does fastest.

A triangular solve with as many right-hand sides as rows is what `numpy.linalg.inv` spends its time in.
"""

from __future__ import annotations

import numpy as np

from featcache.heads.solvers.rows import Float32

LEAF = 160  # rows below which LAPACK's inverse, in float64, is the faster


def invert_positive_definite(matrix: Float32) -> Float32:
    """Return the inverse ``(d, d)`` float32 of a symmetric positive definite matrix ``(d, d)`` float32.

    By halves: the inverse of the first block, then that of its Schur complement. Accurate to float32's rounding times
    the condition number; where that is too much, the result is not positive definite, or not finite.
    """
    d = len(matrix)
    if d <= LEAF:
        return np.asarray(np.linalg.inv(matrix.astype(np.float64)), dtype=np.float32)
    half = d // 2
    first = invert_positive_definite(matrix[:half, :half])
    below = matrix[half:, :half] @ first
    complement = np.subtract(matrix[half:, half:], below @ matrix[:half, half:], dtype=np.float32)
    second = invert_positive_definite(complement)
    result = np.empty_like(matrix)
    corner = second @ below
    np.matmul(below.T, corner, out=result[:half, :half])
    result[:half, :half] += first
    np.negative(corner, out=result[half:, :half])
    result[:half, half:] = result[half:, :half].T
    result[half:, half:] = second
    return result
