"""Heads on real photos and real weights, against scikit-learn on the same rows."""

from __future__ import annotations

from pathlib import Path

from sklearn.linear_model import LogisticRegression

from featcache.cache import open_cache
from featcache.train.fit import train_head
from featcache.train.options import LinearOptions


def test_heads_are_as_good_as_scikit_learns(clothing10_cache: Path) -> None:
    with open_cache(clothing10_cache) as cache:
        rows = {split: cache.numpy(split=split) for split in ("train", "val", "test")}
        features, labels = rows["train"]
        peers = [
            LogisticRegression(C=inverse, max_iter=2000).fit(features, labels) for inverse in (0.001, 0.01, 0.1, 1.0)
        ]
        ours = train_head(cache, head=LinearOptions(l2=1 / (0.01 * len(features))))
        assert ours.test_accuracy is not None
        assert ours.test_accuracy >= peers[1].score(*rows["test"]) - 0.01  # the same penalty, stated per row
        chosen = max(peers, key=lambda peer: peer.score(*rows["val"]))
        free = train_head(cache, head=LinearOptions(l2="auto"))
        assert free.test_accuracy is not None
        assert free.test_accuracy >= chosen.score(*rows["test"]) - 0.01  # both chosen on val
        assert ours.test_accuracy > 0.8
