"""The k-nearest-neighbours head votes as counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from head_examples import WIDTH, make_head

from featcache.heads.knn import unit_rows


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(11, WIDTH)).astype(np.float32)


def test_neighbours_vote_as_counted_by_hand(rows):
    head = make_head("knn")
    known = head.rows.astype(np.float32)
    queries = unit_rows(rows, head.center)
    for query, logits in zip(queries, head.predict_logits(rows), strict=True):
        similarity = known @ query
        nearest = np.argsort(-similarity, kind="stable")[: head.n_neighbors]
        votes = np.zeros(3)
        for i in nearest:
            votes[head.labels[i]] += np.exp(head.sharpness * similarity[i])
        assert np.allclose(logits, np.log(votes / votes.sum() + 1e-6), atol=1e-4)
