"""How far apart the logits of two computations of one model may be, and what that means for its probabilities.

float32 keeps seven digits of the largest term of a sum, so logits of a head with a weak penalty, which are large,
differ by more than small ones between two runtimes that are both right. What may differ is therefore a share of the
logits' spread, stated here once for every format, driver and check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.heads.base import sigmoid, softmax

RELATIVE_TOLERANCE = 1e-4  # ten times what runtimes were seen to differ by, whatever the penalty
SAME_ARITHMETIC = 1e-5  # one runtime, its float32 sums in another order: merged models, features that go


def logit_spread(logits: npt.NDArray[Any]) -> float:
    """Return the root mean square of logits (n, k): how large they are, 0 for none."""
    values = np.asarray(logits, dtype=np.float64)
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def logit_tolerance(reference: npt.NDArray[Any], relative: float = RELATIVE_TOLERANCE) -> float:
    """Return how far float32 logits may be from `reference` (n, k): `relative` of its spread, of 1 where that is less.

    Examples
    --------
    >>> import numpy as np
    >>> logit_tolerance(np.array([[0.3, -0.4]])), round(logit_tolerance(np.array([[30.0, -40.0]])), 5)
    (0.0001, 0.00354)
    """
    return relative * max(1.0, logit_spread(reference))


def probability_difference(reference: npt.NDArray[Any], logits: npt.NDArray[Any], *, task: str) -> float | None:
    """Return the largest difference of the probabilities that two (n, k) logits mean; None for regression.

    Examples
    --------
    >>> import numpy as np
    >>> probability_difference(np.array([[0.0, 0.0]]), np.array([[0.0, 9.0]]), task="multilabel").__round__(3)
    0.5
    """
    if task == "regression":
        return None
    probabilities = softmax if task == "classification" else sigmoid
    return float(np.abs(probabilities(reference) - probabilities(logits)).max(initial=0.0))
