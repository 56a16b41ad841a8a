"""The one place where moments are factored: they are positive definite but for rounding, which equal images show."""

from __future__ import annotations

import torch
from torch import Tensor

from featcache.errors import InputError

_FIRST = 10.0  # added to the diagonal at first, in units of rounding of its largest value
_GROWTH = 10.0


def cholesky(matrix: Tensor) -> Tensor:
    """Return the lower factor of symmetric matrices (…, d, d) whose eigenvalues are above 0 but for rounding.

    Where they are not (all images equal or black, fewer images than inputs, a channel that never changes) the least
    power of ten times the rounding of the largest value is added to the diagonal that makes them so. Raises
    `InputError` for values that are not finite.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not bool(failed.any()):
        return factor
    if not bool(torch.isfinite(matrix).all()):
        raise InputError("values inside the network must be finite for these images, some are NaN or infinite")
    information = torch.finfo(matrix.dtype)
    largest = matrix.abs().amax(dim=(-2, -1)).clamp(min=information.tiny / information.eps)
    first, added = _FIRST * information.eps * largest, torch.zeros_like(largest)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    while bool(failed.any()):
        added = torch.where(failed > 0, torch.maximum(first, _GROWTH * added), added)
        factor, failed = torch.linalg.cholesky_ex(matrix + added[..., None, None] * identity)
    return factor
