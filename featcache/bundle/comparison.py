"""Compare a device file's logits with its reference's, and refuse what differs by more than it may.

The reference of a float file is torch's float32 module. That of a quantized one is its own graph with the stored
scales computed in float32 (ONNX Runtime without any optimisation): what the integers are meant to be.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError, VerificationError
from featcache.formats.interface import FLOAT_TOLERANCE

FLOAT_AGREEMENT = 0.997
INT8_AGREEMENT = 0.98
CHANCE = 0.995  # that few images of a file at the limit are not refused
LEAST_FOR_AGREEMENT = 300  # a share of fewer images says nothing at 99.7 %
_TIE = 1e-3  # reference logits closer than this may change places


def compare_with_reference(
    name: str,
    reference: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    *,
    quantized: bool,
    task: str,
    tolerance: float = FLOAT_TOLERANCE,
) -> tuple[float, int, float | None]:
    """Return (largest difference, images with another first class, agreement or None under 300) of two (n, k) logits.

    Raises `VerificationError` where the device file `name` does not do what its reference does: for float files another
    value beyond `tolerance`, for quantized ones another first class on more than 2 % of the images (ties aside; of
    fewer than 300 images, on more than chance gives where it is 2 %), for any a value that is not finite. `InputError`
    for no image.
    """
    n = len(reference)
    if not n:
        raise InputError("at least one image must decode to compare a device file with its reference, got none")
    if not np.isfinite(logits).all():
        raise VerificationError(
            f"format {name!r} must give finite logits, it gave NaN or infinity: nothing was exported"
        )
    difference = float(np.abs(logits.astype(np.float64) - reference).max())
    changed = (
        np.flatnonzero(logits.argmax(axis=1) != reference.argmax(axis=1))
        if task == "classification"
        else np.zeros(0, np.int64)
    )
    agreement = 1 - len(changed) / n if task == "classification" else None
    if not quantized:
        limit = tolerance * max(1.0, float(np.abs(reference).max()) / 10)
        if difference > limit:
            raise VerificationError(
                f"format {name!r} must give torch's logits within {limit:.2g}, it differs by {difference:.3g} on {n} "
                "images: nothing was exported; please report it with the backbone's name"
            )
    least = INT8_AGREEMENT if quantized else FLOAT_AGREEMENT
    if agreement is not None:
        rows = reference[changed]
        ordered = np.sort(rows, axis=1)
        close = (ordered[:, -1] - ordered[:, -2] < _TIE).sum() if len(rows) and rows.shape[1] > 1 else 0
        allowed = int((1 - least) * n)
        if quantized and n < LEAST_FOR_AGREEMENT:
            allowed = _plausible(n, 1 - least)
        if len(changed) - close > allowed:
            raise VerificationError(
                f"format {name!r} must give the reference's first class on {least:.1%} of the images, it gives another "
                f"on {len(changed)} of {n}: nothing was exported"
            )
    return difference, len(changed), agreement if n >= LEAST_FOR_AGREEMENT else None


def _plausible(n: int, share: float) -> int:
    """Return the least count that n independent events of probability `share` exceed in at most one of 200 cases."""
    from scipy.special import bdtr

    return next(count for count in range(n + 1) if bdtr(count, n, share) >= CHANCE)
