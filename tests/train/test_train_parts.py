"""Training on rows that lie in parts: the same head as in memory, whatever is asked for and whoever is lost."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from memory_cache import MemoryCache, blobs
from train_caches import TASKS, noisy_students, refuse, write_cache

from featcache.errors import InputError
from featcache.heads.solvers.parts import LocalWorkers
from featcache.train.cluster_workers import ClusterWorkers
from featcache.train.fit import train_head, train_on
from featcache.train.options import (
    DistillationOptions,
    KnnOptions,
    LinearOptions,
    MlpOptions,
    PrototypeOptions,
    TrainOptions,
)
from featcache.train.settings import TrainSettings


class CountedCache(MemoryCache):
    """A cache in memory that counts the rows read of it."""

    rows_read = 0

    def gather(self, rows, **settings):
        self.rows_read += len(rows)
        return super().gather(rows, **settings)


def in_parts(cache, *, workers=None, **settings):
    return train_on(cache, TrainSettings(**settings), workers=workers or LocalWorkers(3))


def check_alike(parts, whole):
    assert parts.objective == pytest.approx(whole.objective, rel=3e-6)
    assert (parts.l1, parts.l2) == (whole.l1, whole.l2)
    assert parts.group_l1 == pytest.approx(whole.group_l1)
    assert parts.gap <= max(2e-6, 1.5 * whole.gap)
    largest = np.abs(whole.head.weight).max()
    assert np.abs(parts.head.weight - whole.head.weight).max() < 0.01 * largest
    for name in ("train", "val", "test"):
        ours, theirs = getattr(parts, f"{name}_score"), getattr(whole, f"{name}_score")
        assert ours is theirs is None or ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    "val, settings",
    [
        (True, {"head": LinearOptions(l2=0.05), "options": TrainOptions(calibrate=True, unknown="energy")}),
        (True, {"head": LinearOptions(l2="auto"), "options": TrainOptions(views=[0, 1])}),
        (False, {"head": LinearOptions(l2="auto"), "options": TrainOptions(folds=3)}),
        (True, {"head": LinearOptions(group_l1="auto")}),
        (True, {"head": LinearOptions(keep_features=0.5, l2=0.05)}),
        (
            False,
            {
                "head": LinearOptions(l2=0.1, block_scales=[0.5, 2.0]),
                "options": TrainOptions(outputs=["layer", "features"]),
            },
        ),
        (True, {"head": LinearOptions(l2=0.1, class_weight="balanced", label_smoothing=0.1)}),
    ],
    ids=["after", "views", "folds", "group_l1", "keep_features", "block_scales", "targets"],
)
def test_rows_in_parts_give_the_same_head(val, settings):
    base = blobs(spread=2.0, val=val)
    plain = base.arrays["features"]
    more = np.random.default_rng(1).normal(size=(len(plain), 4)).astype(np.float32)
    columns = {"features": plain, "layer": more, "features@1": plain * np.float32(1.01), "layer@1": more}
    cache = CountedCache(columns, base.samples())
    # looks along a path are loose, so that a row may fall otherwise: streamed rows are fitted by the same solvers
    whole = train_head(cache, **settings, memory_bytes=None if val else 20_000)
    cache.rows_read = 0
    parts = in_parts(cache, **settings)
    check_alike(parts, whole)
    assert cache.rows_read == parts.n_train + parts.n_val + parts.n_test  # once, for all fits, looks and scores
    if whole.head.unknown is not None:
        assert parts.head.unknown.auroc == pytest.approx(whole.head.unknown.auroc, abs=0.01)
        assert parts.head.calibration.temperature == pytest.approx(whole.head.calibration.temperature, rel=1e-2)


@pytest.mark.parametrize("task", ["multilabel", "regression", "binary"])
def test_parts_of_other_tasks_give_the_same_head(task):
    cache = TASKS[task]()
    for head in (LinearOptions(l2=0.05), LinearOptions(group_l1=0.05, l2=0.01)):
        check_alike(in_parts(cache, head=head), train_head(cache, head=head))
    check_alike(in_parts(cache), train_head(cache, memory_bytes=5_000))  # chosen, by the same solvers


def test_unlabelled_images_take_part_in_parts():
    cache, teacher = noisy_students(noise=0.0, free=520)
    master = train_head(teacher, head=LinearOptions(l2=0.1)).head
    settings = {
        "head": LinearOptions(l2=0.05),
        "distillation": DistillationOptions(teacher=teacher, teacher_head=master, alpha=0.7),
    }
    parts = in_parts(cache, **settings)
    assert parts.n_unlabelled == 520
    check_alike(parts, train_head(cache, **settings))


def test_more_workers_than_rows_give_the_same_head():
    cache = blobs(n=60)
    head = LinearOptions(l2=0.1)
    check_alike(in_parts(cache, head=head, workers=LocalWorkers(50)), train_head(cache, head=head))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_features_in_parts_that_are_not_finite_are_named(split):
    cache = blobs()
    row = cache.select(split=split).rows[2]
    cache.arrays["features"][row, 5] = np.nan
    with pytest.raises(InputError, match=f"1 rows, first that of '{row:06}.jpg'"):
        in_parts(cache, head=LinearOptions(l2=0.1))


@pytest.mark.parametrize(
    "head", [MlpOptions(), KnnOptions(), PrototypeOptions(), LinearOptions(mixup=0.2)], ids=lambda head: head.kind
)
def test_what_needs_the_rows_in_memory_refuses_parts(head):
    refuse(blobs(), "needs the rows in memory, in a cluster they are in parts", head=head, ray="local")


def test_actors_without_a_cluster_are_refused():
    refuse(blobs(), "need a cluster to be in", actors=2)


@pytest.mark.long
@pytest.mark.ray
def test_actors_answer_as_memory_does_and_one_that_is_killed_reads_again(tmp_path):
    """A cluster of this machine: a head by `train_head`, then solver rounds with an actor killed between them."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'featcache[ray]'")
    from featcache.system.cluster import ClusterSettings, cluster

    memory = blobs(spread=2.0)
    place = write_cache(tmp_path / "cache", memory)
    settings = TrainSettings(head=LinearOptions(l2=0.05))
    whole = train_head(place, head=settings.head)
    with cluster("local") as ray:
        check_alike(train_head(place, head=settings.head, ray="local", actors=2), whole)
        workers = ClusterWorkers(ray, ClusterSettings("local", 2))
        killed = []

        def process_of(actor):
            return ray.get(actor.ask.remote(lambda part: os.getpid()))

        def lose_one(*_):
            if workers.traffic.rounds == 6 and not killed:
                killed.append(process_of(workers.actors[1]))
                os.kill(killed[0], signal.SIGKILL)
            return type(workers)._run(workers, *_)

        workers._run = lose_one
        check_alike(train_on(place, settings, workers=workers), whole)
        assert killed
        assert process_of(workers.actors[1]) != killed[0]
        workers.close()
        with pytest.raises(InputError, match="at most as many as the cluster's"):
            train_head(place, head=settings.head, ray="local", actors=500)
