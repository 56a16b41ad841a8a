"""The figures that settings are chosen by, by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from train_caches import numbers_to_predict

from featcache.train.fit import train_head
from featcache.train.options import (
    TrainOptions,
)
from featcache.train.score import average_precisions, score_logits


def test_average_precision_by_hand():
    logits = np.array([[3.0], [2.0], [1.0], [0.0]])
    assert average_precisions(logits, np.array([[1], [0], [1], [0]])) == pytest.approx([(1 + 2 / 3) / 2])
    assert np.isnan(average_precisions(logits, np.zeros((4, 1)))).all()
    assert score_logits(logits, np.zeros((4, 1)), task="multilabel").accuracy == 0.25


def test_r2_of_equal_targets_is_one_or_zero():
    """As scikit-learn's, where R² is 0/0 or minus infinity: folds may hold one row."""
    same = np.full((3, 2), 7.0)
    assert score_logits(same, same, task="regression").value == 1.0
    missed = score_logits(same + 1, same, task="regression")
    assert (missed.value, missed.standard_error, missed.loss) == (0.0, 0.0, 1.0)
    cache = numbers_to_predict()
    cache.samples().splits[:] = 2
    cache.samples().splits[:24] = 0
    each_alone = train_head(cache, options=TrainOptions(folds=10_000))
    assert each_alone.selection == "24 folds"
    json.dumps(each_alone.to_json(), allow_nan=False)
