"""compare_heads: every cache with every head and choice of outputs, one table, the best on val."""

from __future__ import annotations

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs
from train_caches import noisy_students

from featcache.errors import InputError
from featcache.train.comparison import HeadComparison, compare_heads
from featcache.train.fit import train_head
from featcache.train.options import DistillationOptions, KnnOptions, LinearOptions, PrototypeOptions, TrainOptions


def test_compare_heads_of_several_penalties_gives_the_best_on_val():
    """Each result is the one that `train_head` gives alone."""
    cache = blobs(spread=2.5)
    heads = [LinearOptions(l2=100.0), LinearOptions(), PrototypeOptions()]
    comparison = compare_heads(cache, heads=heads)
    alone = [train_head(cache, head=head) for head in heads]
    assert [result.val_score for result in comparison.results] == [result.val_score for result in alone]
    assert np.array_equal(comparison.results[1].head.weight, alone[1].head.weight)
    assert comparison.best is comparison.results[max(range(3), key=lambda i: (alone[i].val_score, -i))]
    assert comparison.titles == tuple(f"{cache.path} {title}" for title in ("linear l2=100.0", "linear", "prototype"))


def test_table_of_a_comparison_marks_the_best_on_val():
    """One line per result below the header; the earliest of equals has the star."""
    cache = blobs(spread=2.5)
    compared = compare_heads(cache, heads=[LinearOptions(l2=100.0), LinearOptions(), LinearOptions(l2="auto")])
    lines = HeadComparison(compared.results, ("strong", "chosen", "again")).table().splitlines()
    assert [line.split()[0] for line in lines] == ["head", "strong", "chosen", "again"]
    scores = [result.val_score for result in compared.results]
    assert [i for i, line in enumerate(lines[1:]) if "*" in line] == [scores.index(max(scores))]


def test_compare_heads_without_val_has_no_best():
    """Nothing may be chosen by test or train."""
    comparison = compare_heads(blobs(val=False), heads=[LinearOptions(l2=0.1), LinearOptions(l2=1.0)])
    assert comparison.best is None
    assert "*" not in comparison.table()


def test_compare_heads_takes_several_caches_and_outputs():
    """Caches come first, then heads, then outputs; their titles say which is which."""
    plain = blobs()
    columns = {"features": plain.arrays["features"], "stage1": plain.arrays["features"][:, :3]}
    cache = MemoryCache(columns, plain.samples())
    sides = [["features"], ["features", "stage1"]]
    comparison = compare_heads([cache, cache], heads=[LinearOptions(l2=0.1), PrototypeOptions()], outputs=sides)
    assert [result.num_features for result in comparison.results] == [16, 19] * 4
    assert comparison.titles[1] == f"{cache.path} linear features,stage1"
    assert [title.split()[1] for title in comparison.titles] == (["linear"] * 2 + ["prototype"] * 2) * 2
    assert compare_heads([cache, cache]).titles == (str(cache.path),) * 2


def test_compare_heads_distils_into_the_kinds_that_learn_from_a_teacher():
    """The others learn from labels alone; where none of the kinds can, the teacher is refused."""
    cache, teacher = noisy_students()
    distillation = DistillationOptions(teacher=teacher, alpha=0.5)
    comparison = compare_heads(cache, heads=[LinearOptions(l2=0.1), KnnOptions()], distillation=distillation)
    assert ["teacher" in result.details for result in comparison.results] == [True, False]
    with pytest.raises(InputError, match="a teacher needs kind"):
        compare_heads(cache, heads=[KnnOptions(), PrototypeOptions()], distillation=distillation)


def test_compare_heads_refuses_before_anything_is_trained():
    """A candidate that cannot be is found before the first fit, and a comparison of nothing says so."""
    cache, teacher = noisy_students()
    heads = [LinearOptions(l2=0.1), LinearOptions(label_smoothing=0.1)]
    with pytest.raises(InputError, match="label_smoothing and a teacher"):
        compare_heads(cache, heads=heads, distillation=DistillationOptions(teacher=teacher))
    with pytest.raises(InputError, match="a comparison needs a cache"):
        compare_heads([], options=TrainOptions())
