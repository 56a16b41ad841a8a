"""Rules for "none of these": scores, thresholds, the area under the curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import InputError
from featcache.heads.unknown import SCORES, UnknownRule, area_under_roc, fit_unknown_rule, known_score


@pytest.mark.parametrize("score", SCORES)
def test_the_threshold_accepts_the_asked_share(score):
    logits = np.random.default_rng(0).normal(size=(200, 6)) * 3
    rule = fit_unknown_rule(logits, score=score, accept=0.9)
    assert rule.accepted == pytest.approx(0.9, abs=0.006)
    assert rule.is_unknown(logits).mean() == pytest.approx(0.1, abs=0.006)
    assert not fit_unknown_rule(logits, score=score, accept=1.0).is_unknown(logits).any()


@pytest.mark.parametrize("score", SCORES)
def test_a_confident_row_scores_above_an_undecided_one(score):
    undecided, confident = np.array([[0.1, 0.0, 0.0]]), np.array([[9.0, 0.0, 0.0]])
    assert known_score(confident, score=score) > known_score(undecided, score=score)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_the_area_is_the_share_of_ordered_pairs(known, unknown):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in unknown]
    assert area_under_roc(np.array(known), np.array(unknown)) == pytest.approx(np.mean(pairs))


def test_a_rule_needs_a_known_score_and_images():
    with pytest.raises(InputError, match="score"):
        UnknownRule("entropy", 0, 1, 1)
    with pytest.raises(InputError, match="accept"):
        fit_unknown_rule(np.zeros((3, 2)), score="energy", accept=0)
    with pytest.raises(InputError, match="held-out"):
        fit_unknown_rule(np.zeros((0, 2)), score="energy", accept=0.9)
