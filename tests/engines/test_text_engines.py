"""Text engines: they keep the contract, agree with torch on bare texts, and agree with sentence-transformers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from text_encoders import SENTENCES, packaged_encoder, write_encoder

from featcache.backbone.text import TextBackbone, load_text_backbone
from featcache.engines._openvino import Arithmetic
from featcache.engines.precision import lowest_cosine
from featcache.engines.text import TextEngine, bucket_lengths, open_text_engine
from featcache.engines.text import _openvino as openvino_engine
from featcache.engines.text.buckets import Buckets
from featcache.engines.text.check_texts import CHECK_TEXTS, check_ids, reference_text_rows
from featcache.errors import InputError
from featcache.testing.text_engines import TextEngineContract

NAMES = ("openvino", "onnxruntime", "torch")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> TextBackbone:
    folder = write_encoder(tmp_path_factory.mktemp("encoder"))
    return load_text_backbone(folder, outputs=("features", "mean-1", "cls-2"))


class TestFeatcachesEngines(TextEngineContract):
    """The three of them."""

    @pytest.fixture(scope="class", params=NAMES)
    @classmethod
    def engine(cls, backbone: TextBackbone, request: pytest.FixtureRequest) -> Iterator[TextEngine]:
        with open_text_engine(backbone, engine=request.param) as opened:
            yield opened

    @pytest.mark.parametrize("name", NAMES)
    def test_closed_engine_refuses_to_run(self, backbone: TextBackbone, name: str) -> None:
        with open_text_engine(backbone, engine=name, precision="fp32") as engine:
            engine.run(self.texts()[:1])
        engine.close()
        with pytest.raises(InputError, match="closed"):
            engine.run(self.texts()[:1])

    def test_engine_computes_what_torch_does_without_padding(self, backbone: TextBackbone, engine: TextEngine) -> None:
        """Whatever it pads and masks: an encoder fed one bare text at a time is the reference."""
        ids = backbone.tokenizer.encode([*SENTENCES[:20], *CHECK_TEXTS])
        rows, wanted = engine.run(ids), reference_text_rows(backbone, ids)
        if engine.precision == "fp32":
            for values, expected in zip(rows, wanted, strict=True):
                np.testing.assert_allclose(values, expected, atol=1e-5)
        assert lowest_cosine(rows, wanted) >= 0.999


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "qwen3"])
def test_engine_computes_other_kinds_of_encoders(tmp_path, kind: str) -> None:
    """Positions counted from the padding, rotary positions and windows, causal masks."""
    backbone = load_text_backbone(write_encoder(tmp_path, kind=kind, pooling={"pooling_mode": "lasttoken"}))
    ids = backbone.tokenizer.encode([*SENTENCES[:12], CHECK_TEXTS[-1]])
    with open_text_engine(backbone, engine="openvino", precision="fp32") as engine:
        (rows,), (wanted,) = engine.run(ids), reference_text_rows(backbone, ids)
        np.testing.assert_allclose(rows, wanted, atol=1e-5)
        for index in (0, 5, 12):
            np.testing.assert_array_equal(engine.run([ids[index]])[0][0], rows[index])


def test_buckets_pad_by_an_eighth_at_most_and_reach_the_longest() -> None:
    """Below 16 tokens, not at all."""
    for most in (1, 2, 17, 40, 256, 512, 8192):
        lengths = bucket_lengths(most)
        assert lengths[-1] == most and sorted(set(lengths)) == list(lengths)
        for shorter, longer in zip((0, *lengths), lengths, strict=False):
            assert longer - shorter <= max(1, longer / 8)


def test_plan_has_each_text_once_in_the_bucket_of_its_own_length() -> None:
    """Also where more texts share a bucket than its batch holds; batches are as many as needed."""
    lengths = np.random.default_rng(0).integers(1, 257, 3000)
    buckets = Buckets(256)
    batches = buckets.plan(lengths)
    assert sorted(np.concatenate([batch.indices for batch in batches])) == list(range(3000))
    for batch in batches:
        assert len(batch.indices) <= batch.bucket.batch_size
        shorter = [bucket.length for bucket in buckets.all if bucket.length < batch.bucket.length]
        assert (lengths[batch.indices] <= batch.bucket.length).all()
        assert (lengths[batch.indices] > max(shorter, default=0)).all()
    alone = {buckets.plan(lengths[[index]])[0].bucket for index in batches[0].indices}
    assert alone == {batches[0].bucket}


def test_auto_leaves_a_precision_that_the_check_texts_refuse(backbone: TextBackbone) -> None:
    """Whatever the processor says it has: one that fails its bound is not taken, and fp32 always is."""
    everything = Arithmetic(bf16=True, int8=True)
    impossible = {"fp32": 0.0, "bf16": 1.1, "int8-dynamic": 1.1}
    with openvino_engine.open_backbone(
        backbone, precision="auto", arithmetic=everything, least_cosine=impossible
    ) as engine:
        assert engine.precision == "fp32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "onnxruntime", "precision": "bf16"}, "fp32 only"),
        ({"engine": "torch", "precision": "int8-dynamic"}, "fp32 or bf16"),
        ({"engine": "openvino", "precision": "int8"}, "not quantized"),
        ({"precision": "fp8"}, "must be 'auto' or one of"),
        ({"engine": "jax"}, "must be 'auto' or one of"),
    ],
)
def test_engine_or_precision_that_there_is_not_is_refused(backbone: TextBackbone, settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_text_engine(backbone, **settings)


@pytest.mark.shared
def test_rows_are_those_of_sentence_transformers() -> None:
    """Of all-MiniLM-L6-v2, with its pooling and normalisation, for texts of any script and length."""
    encoder = packaged_encoder()
    sentence_transformers = pytest.importorskip("sentence_transformers")
    backbone = load_text_backbone(encoder)
    texts = [*CHECK_TEXTS, "", " \n", "long " * 400]
    wanted = sentence_transformers.SentenceTransformer(str(encoder), device="cpu").encode(texts)
    with open_text_engine(backbone) as engine:
        (rows,) = engine.run(backbone.tokenizer.encode(texts))
    assert lowest_cosine([rows], [wanted]) >= 0.999
    assert backbone.preprocessing.normalize and backbone.preprocessing.max_length == 256
    ids = check_ids(backbone)
    assert max(map(len, ids)) < 256 == len(backbone.tokenizer.encode(["long " * 400])[0])
