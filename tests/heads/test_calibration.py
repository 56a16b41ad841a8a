"""Temperature scaling: the error counted by hand, and the temperature that undoes a scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import InputError
from featcache.heads.calibration import expected_calibration_error, fit_temperature, negative_log_likelihood


def test_a_calibration_error_counted_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.45, 0.55]])
    labels = np.array([0, 1, 1, 0])
    # three bins hold something: 2 rows of 0.9 (half right), one of 0.7 (right), one of 0.55 (wrong)
    assert expected_calibration_error(probabilities, labels) == pytest.approx((2 * 0.4 + 0.3 + 0.55) / 4)


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 50))
def test_the_fitted_temperature_undoes_a_scale(scale, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(400, 5)) * 2
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)  # draws from their softmax
    base = fit_temperature(logits, labels)
    fitted = fit_temperature(logits * scale, labels)
    assert fitted == pytest.approx(base * scale, rel=1e-3)
    assert negative_log_likelihood(logits * scale, labels, fitted) <= negative_log_likelihood(logits * scale, labels)


def test_nothing_can_be_calibrated_on_no_images():
    with pytest.raises(InputError, match="held-out"):
        fit_temperature(np.empty((0, 3)), np.empty(0, dtype=np.int64))
