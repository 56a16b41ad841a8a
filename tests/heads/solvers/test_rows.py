"""Standardised rows: what a source of blocks must give."""

from __future__ import annotations

import pytest
from solver_problems import Blocks, draw

from featcache.errors import InputError
from featcache.heads.solvers import Problem, solve


def test_blocks_that_do_not_cover_the_rows_are_refused():
    features, labels = draw()

    class Short(Blocks):
        def __iter__(self):
            yield 0, self.features[:10]

    with pytest.raises(InputError, match="cover all 80 rows"):
        solve(Problem(features=Short(features, ()), targets=labels), l2=0.1)
