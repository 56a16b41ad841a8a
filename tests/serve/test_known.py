"""Images that a cache knows are answered from their stored features; which caches a bundle takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import write_photo
from serving import running

import featcache
from featcache.errors import FormatError, InputError, MissingError
from featcache.graph.head_part import head_part
from featcache.heads import load_head
from featcache.runtime import open_bundle, predict
from featcache.serve.known import KnownInputs, StoredFeatures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, the cache of them, head, model and bundle, and another cache."""
    place = tmp_path_factory.mktemp("known")
    for hue, name in enumerate(["cat", "dog"]):
        for i in range(10):
            write_photo(place / "photos" / name / f"{i:02}.jpg", seed=100 * hue + i, hue=hue)
    for name, seed in (("cache", 0), ("other", 1)):
        featcache.build_cache(
            place / "photos", place / name, backbone="test_efficientnet", weights=f"random:{seed}", engine="torch"
        )
    head = featcache.train_head(place / "cache", head=featcache.LinearOptions(l2=1e-3)).head
    featcache.save_head(head, place / "head")
    featcache.merge(head, place / "cache", out=place / "model")
    featcache.export(place / "model", out=place / "bundle")
    return place


def test_known_images_are_answered_as_predict_answers_them_and_counted(made: Path, tmp_path: Path) -> None:
    known = sorted((made / "photos").rglob("*.jpg"))[::4]
    strange = tmp_path / "strange.jpg"
    write_photo(strange, seed=999)
    expected = predict(made / "head", known, cache=made / "cache")
    with running([made / "bundle"], cache=made / "cache") as server:
        files = [(path.name, path.read_bytes()) for path in [*known, strange]]
        status, entries = server.upload("/models/bundle/classify", files)
        assert status == 200
        assert [entry["cached"] for entry in entries] == [True] * len(known) + [False]
        assert [entry["label"] for entry in entries[:-1]] == [one.label for one in expected]
        np.testing.assert_allclose(
            [entry["probability"] for entry in entries[:-1]], [one.probability for one in expected], atol=1e-5
        )
        counted = {
            outcome: server.metric(f'featcache_images_total{{model="bundle",outcome="{outcome}",version="1"}}')
            for outcome in ("cached", "computed")
        }
        assert counted == {"cached": len(known), "computed": 1}
        assert server.metric('featcache_batch_images_sum{model="bundle",version="1"}') == 1


def test_the_head_that_is_cut_from_the_file_is_the_head(made: Path) -> None:
    from featcache.engines.session import open_session

    features = np.random.default_rng(0).standard_normal((5, load_head(made / "head").num_features)).astype(np.float32)
    session = open_session(head_part(made / "bundle" / "model.onnx"), threads=1)
    expected = load_head(made / "head").predict_logits(features)
    np.testing.assert_allclose(session.run(["logits"], {"features": features})[0], expected, rtol=1e-4, atol=1e-4)


def test_a_file_that_does_not_show_its_head_is_refused(tmp_path: Path) -> None:
    import onnx
    from export_models import hard_graph

    onnx.save(hard_graph(), tmp_path / "hard.onnx")
    with pytest.raises(FormatError, match="must show where its head begins, it has 0 such places"):
        head_part(tmp_path / "hard.onnx")


def test_a_cache_that_no_bundle_was_made_from_is_refused(made: Path, pets: Path) -> None:
    said = pytest.raises(InputError, match=r"must be the one that .* was made from")
    with said, running([made / "bundle"], cache=made / "other"):
        pass
    with pytest.raises(MissingError), running([made / "bundle"], cache=made / "nowhere"):
        pass
    with running([made / "bundle", pets], cache=made / "cache") as server:  # one that fits is enough
        answered = server.get("/models")[1]
        assert (answered.count(b'"answers_from_cache":true'), answered.count(b'"answers_from_cache":false')) == (1, 1)


def test_a_compressed_bundle_has_other_features_than_the_cache(made: Path) -> None:
    bundle = open_bundle(made / "bundle")
    stored = StoredFeatures(made / "cache")
    try:
        steps = [*bundle.lineage["steps"], {"verb": "quantize"}]
        with pytest.raises(InputError, match=r"was changed since \(quantize\)"):
            KnownInputs(dataclasses.replace(bundle, lineage={**bundle.lineage, "steps": steps}), stored)
        with pytest.raises(InputError, match="has none: export it with --format onnx"):
            KnownInputs(dataclasses.replace(bundle, formats={"tflite": ("model.tflite",)}), stored)
    finally:
        stored.close()
