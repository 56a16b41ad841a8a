"""The torch data set over a cache: any outputs and views, in this process, in forked and in spawned workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake import FakeEngine, fake_recipe
from torch.utils.data import DataLoader

from featcache.cache import open_cache
from featcache.cache.torch_dataset import CachedFeatures
from featcache.errors import InputError
from featcache.extract.build import Extractor, build_cache


class TwoOutputs(FakeEngine):
    """Features and their squares."""

    columns = (("features", (48,)), ("squares", (6, 8)))

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        (rows,) = super()._infer(batch)
        return rows, (rows**2).reshape(-1, 6, 8)


@pytest.fixture(params=["lmdb", "zarr"])
def cache(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    recipe = fake_recipe(outputs=("features", "squares"), views=2, view_seed=1)
    build_cache(photos, tmp_path / "cache", store=request.param, extractor=Extractor(TwoOutputs(), recipe))
    return tmp_path / "cache"


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
def test_items_are_those_of_numpy_in_any_process(cache: Path, start: str | None) -> None:
    wanted = {"output": ["squares", "features"], "split": "train"}
    with open_cache(cache) as opened:
        features, labels = opened.numpy(view=[1, 0], **wanted)  # type: ignore[arg-type]
    data = CachedFeatures(cache, views=[1, 0], **wanted)  # type: ignore[arg-type]
    if start == "fork":
        data[0]  # what is open already must not harm the workers
    workers = {"num_workers": 2, "multiprocessing_context": start} if start else {}
    batches = list(DataLoader(data, batch_size=7, **workers))
    assert np.array_equal(np.concatenate([batch.numpy() for batch, _ in batches]), features)
    assert np.array_equal(np.concatenate([batch.numpy() for _, batch in batches]), labels)
    assert features.shape[1] == 96


def test_what_is_not_stored_is_refused(cache: Path) -> None:
    with pytest.raises(InputError, match="view must be 0 to 1"):
        CachedFeatures(cache, views=[2])
    with pytest.raises(InputError, match="output must be one of"):
        CachedFeatures(cache, output="logits")
    with pytest.raises(IndexError):
        CachedFeatures(cache)[48]
