"""The search for a penalty: where it looks, what it takes among equals, the rule of one standard error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_cache import blobs

from featcache.train.fit import refit_head, train_head
from featcache.train.options import (
    LinearOptions,
)
from featcache.train.score import Score
from featcache.train.search import choose, looks_shown, search


def curve(*pairs):
    return {10.0**-i: Score(value, 0.02, value, loss, 100) for i, (value, loss) in enumerate(pairs)}


def test_the_one_standard_error_rule_takes_a_stronger_penalty_within_the_error():
    scores = curve((0.5, 1), (0.87, 1), (0.885, 1), (0.9, 1), (0.88, 1))
    assert choose(scores, one_standard_error=False) == 1e-3
    assert choose(scores, one_standard_error=True) == 1e-2
    cache = blobs(spread=2.5)
    careful = train_head(cache, head=LinearOptions(standard_error_rule=True))
    assert careful.l2 >= train_head(cache).l2
    assert np.array_equal(refit_head(cache, careful.settings).head.weight, careful.head.weight)


def test_equal_scores_go_to_the_smaller_loss_then_to_the_stronger_penalty():
    assert choose(curve((0.9, 0.5), (0.9, 0.3), (0.9, 0.4)), one_standard_error=False) == 0.1
    assert choose(curve((0.9, 0.3), (0.9, 0.3)), one_standard_error=False) == 1.0


@given(peak=st.integers(0, 44), width=st.floats(2, 30))
def test_the_search_finds_the_best_of_the_grid_where_there_is_one_peak(peak, width):
    grid = np.logspace(1, -4, 45).tolist()
    looked = []

    def score(value):
        looked.append(value)
        distance = abs(grid.index(value) - peak)
        return Score(1 - distance / 100, 0.01, None, (distance / width) ** 2, 50)

    scores, chosen = search(grid, lambda value, _: score(value), one_standard_error=False)
    assert chosen == grid[peak]
    assert len(looked) == len(set(looked)) == len(scores) <= peak // 4 + 8
    assert list(scores) == sorted(scores, reverse=True)
    _, careful = search(grid, lambda value, _: score(value), one_standard_error=True)
    assert careful == grid[max(peak - 1, 0)]


def test_a_large_problem_is_walked_on_its_leading_components_and_ends_at_the_same_choice_and_the_exact_head(
    monkeypatch,
):
    """What `--l2 auto` does from `LONG_FITS` on: cheaper looks, one certified fit, the choice of exact looks."""
    from featcache.train import search as module

    cache = blobs(n=1500, d=256, k=6, spread=2.5)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(256, 256)))[0]
    values = cache.arrays["features"]
    steep = ((values - values.mean(0)) / values.std(0)) * np.exp(-np.arange(256) / 6.0)
    values[...] = (steep @ turn).astype(np.float32)
    exact = train_head(cache)
    assert "components" not in exact.details
    monkeypatch.setattr(module, "LONG_FITS", 1)
    looked = train_head(cache)
    assert looked.details["components"] == 64
    assert looked.l2 == exact.l2 and looked.gap <= 1e-6
    assert abs(looked.objective / exact.objective - 1) <= 2e-6
    monkeypatch.setattr(module, "ENOUGH", 1.1)  # a flat spectrum: on all features, then
    assert "components" not in train_head(cache).details


@pytest.mark.parametrize(("terminal", "seconds", "shown"), [(True, 2.0, True), (True, 0.0, False), (False, 2.0, False)])
def test_a_walk_of_over_a_second_shows_a_bar_on_a_terminal(monkeypatch, capsys, terminal, seconds, shown):
    """What is looked at, how many are done of how many at most; nothing where nobody sees it, or it is over at once."""
    clock = [100.0]
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])

    def score(value, tolerance):
        clock[0] += seconds
        return Score(1.0, 0.0, 1.0, value, 10)

    with looks_shown(score, at_most=3, penalty="l2") as counted:
        values = [counted(value, 1e-3).loss for value in (10.0, 1.0, 0.1)]
    assert values == [10.0, 1.0, 0.1]
    said = capsys.readouterr().err
    assert ("train: l2" in said and "3/3" in said) == shown
    assert bool(said.strip()) == shown
