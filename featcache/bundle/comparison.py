"""Compare a device file's logits with its reference's, and refuse what differs by more than it may.

The reference of a float file is torch's float32 module. That of a quantized one is its own graph with the stored
scales computed in float32 (ONNX Runtime without any optimisation): what the integers are meant to be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError, VerificationError
from featcache.heads.agreement import RELATIVE_TOLERANCE, logit_tolerance, probability_difference

FLOAT_AGREEMENT = 0.997
INT8_AGREEMENT = 0.98
CHANCE = 0.995  # that few images of a file at the limit are not refused
LEAST_FOR_AGREEMENT = 300  # a share of fewer images says nothing at 99.7 %
_TIE = 1e-3  # of the logits' spread: reference logits closer than this may change places


@dataclass(frozen=True, slots=True)
class Comparison:
    """How near a device file is to its reference on `n` images.

    `max_abs_diff`: the largest difference of logits. `tolerance`: what it may be; None for quantized files, which are
    held to their first class. `max_probability_diff`: the largest difference of probabilities, None for regression.
    `changed`: images with another first class. `agreement`: the share of the others, None for other tasks than
    classification and of fewer than 300 images.
    """

    n: int
    max_abs_diff: float
    tolerance: float | None
    max_probability_diff: float | None
    changed: int
    agreement: float | None


def compare_with_reference(
    name: str,
    reference: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    *,
    quantized: bool,
    task: str,
    tolerance: float = RELATIVE_TOLERANCE,
) -> Comparison:
    """Return how near two (n, k) logits are.

    Raises `VerificationError` where the device file `name` does not do what its reference does: for float files another
    value beyond `tolerance` of the reference's spread (`featcache.heads.agreement.logit_tolerance`), for quantized ones
    another first class on more than 2 % of the images (ties aside; of fewer than 300 images, on more than chance gives
    where it is 2 %), for any a value that is not finite. `InputError` for no image.
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
    limit = None if quantized else logit_tolerance(reference, tolerance)
    moved = probability_difference(reference, logits, task=task)
    if limit is not None and difference > limit:
        probabilities = "" if moved is None else f", probabilities by {moved:.2g}"
        raise VerificationError(
            f"format {name!r} must give torch's logits within {limit:.2g}, it differs by {difference:.3g}"
            f"{probabilities} on {n} images ({len(changed)} with another first class): nothing was exported; please "
            "report it with the backbone's name"
        )
    least = INT8_AGREEMENT if quantized else FLOAT_AGREEMENT
    rows = reference[changed]
    ordered = np.sort(rows, axis=1)
    tie = logit_tolerance(reference, _TIE)
    close = (ordered[:, -1] - ordered[:, -2] < tie).sum() if len(rows) and rows.shape[1] > 1 else 0
    allowed = int((1 - least) * n)
    if quantized and n < LEAST_FOR_AGREEMENT:
        allowed = _plausible(n, 1 - least)
    if len(changed) - close > allowed:
        raise VerificationError(
            f"format {name!r} must give the reference's first class on {least:.1%} of the images, it gives another "
            f"on {len(changed)} of {n}: nothing was exported"
        )
    share = 1 - len(changed) / n if task == "classification" and n >= LEAST_FOR_AGREEMENT else None
    return Comparison(n, difference, limit, moved, len(changed), share)


def _plausible(n: int, share: float) -> int:
    """Return the least count that n independent events of probability `share` exceed in at most one of 200 cases."""
    from scipy.special import bdtr

    return next(count for count in range(n + 1) if bdtr(count, n, share) >= CHANCE)
