"""Training from a cache on disk: the same head as from memory, from the path alone, quick to start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from memory_cache import MemoryCache, blobs, make_samples
from train_caches import write_cache

from featcache.cache import open_cache
from featcache.errors import InputError
from featcache.extract.build import build_cache
from featcache.heads import load_head
from featcache.train.fit import refit_head, train_head
from featcache.train.options import DistillationOptions, LinearOptions, TrainOptions


@pytest.mark.parametrize("store", ["lmdb", "zarr"])
def test_a_cache_on_disk_gives_the_head_of_the_same_rows_in_memory(store, tmp_path):
    plain = blobs()
    columns = {"features": plain.arrays["features"], "features@1": plain.arrays["features"] + 0.5}
    memory = MemoryCache(columns, plain.samples())
    path = write_cache(tmp_path / "cache", memory, store=store)
    settings = {"head": LinearOptions(l2=0.05), "options": TrainOptions(views=[0, 1])}
    from_path, from_memory = train_head(path, **settings), train_head(memory, **settings)
    assert np.array_equal(from_path.head.weight, from_memory.head.weight)
    assert from_path.test_accuracy == from_memory.test_accuracy
    with open_cache(path) as cache:
        assert from_path.fingerprint == from_path.head.fingerprint == cache.fingerprint
        assert np.array_equal(train_head(cache, **settings).head.weight, from_path.head.weight)


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(n=1500, d=40, k=10))
    code = (
        "import sys; from featcache import LinearOptions, TrainOptions, save_head, train_head;"
        "result = train_head(sys.argv[1], head=LinearOptions(mixup=0.3), options=TrainOptions(seed=4));"
        "save_head(result.head, sys.argv[2])"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / name)], check=True)
    for name in ("head.json", "head.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_teacher_named_by_path_is_found_again_by_the_settings(tmp_path):
    student, master = blobs(spread=3.0), blobs(spread=1.0)
    path = write_cache(tmp_path / "student", student)
    teacher = write_cache(tmp_path / "teacher", master, model="teacher.model")
    head = train_head(teacher, head=LinearOptions(l2=0.1)).save(tmp_path / "head")
    first = train_head(
        path, head=LinearOptions(l2=0.05), distillation=DistillationOptions(teacher=teacher, teacher_head=head)
    )
    again = refit_head(path, first.settings)
    assert np.array_equal(first.head.weight, again.head.weight)
    assert first.details["teacher"]["head"] == "given"
    in_memory = train_head(
        path,
        head=LinearOptions(l2=0.05),
        distillation=DistillationOptions(teacher=teacher, teacher_head=load_head(head)),
    )
    assert np.array_equal(refit_head(path, in_memory.settings).head.weight, first.head.weight)


def test_several_data_sets_must_be_told_apart(tmp_path):
    memory = blobs()
    path = write_cache(tmp_path / "cache", memory)
    with open_cache(path) as cache:
        samples = memory.samples()
        splits = ["test" if code == 2 else "train" for code in samples.splits]
        cache.replace_samples(
            make_samples(samples.labels % 2, splits, digests=samples.digests, dataset="parity", classes=("even", "odd"))
        )
        with pytest.raises(InputError, match=r"--dataset must name one of \['parity', 'toy'\]"):
            train_head(cache)
        result = train_head(cache, dataset="parity")
        assert result.classes == ("even", "odd")
        assert result.val_accuracy is None
        again = refit_head(cache, result.settings, dataset="parity")
        assert np.array_equal(result.head.weight, again.head.weight)


def test_streamed_from_a_store_is_the_same_as_from_memory(tmp_path):
    path = write_cache(tmp_path / "cache", blobs(spread=2.0))
    whole, streamed = (
        train_head(path, head=LinearOptions(l2=0.05)),
        train_head(path, head=LinearOptions(l2=0.05), memory_bytes=1000),
    )
    assert "streamed" in streamed.notes[0]
    assert streamed.objective == pytest.approx(whole.objective, rel=3e-6)
    assert streamed.test_accuracy == whole.test_accuracy


def test_train_head_of_two_dozen_photos_with_a_weak_l1_ends_at_the_minimum(tmp_path: Path) -> None:
    """Far more features than photos, nearly copies of each other: a step that raises the objective is not taken."""
    for hue, label in enumerate(("cat", "dog")):
        for number in range(12):
            write_photo(tmp_path / "photos" / label / f"{number:02}.jpg", seed=100 * hue + number, hue=hue)
    build_cache(tmp_path / "photos", tmp_path / "cache")
    for l1 in (0.03, 0.01):
        fit = train_head(tmp_path / "cache", head=LinearOptions(l1=l1))
        assert fit.objective < np.log(2), "that of weights that are all zero"
        assert fit.gap <= 1e-5
