"""Text encoders: what their directories say is kept, what cannot be trusted is refused, padding changes no row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from text_encoders import write_encoder

from featcache.backbone.text import TextBackbone, TextTokenizer, load_text_backbone
from featcache.errors import BackboneError, FeatcacheError, FormatError, InputError, MissingError, WeightsError
from featcache.recipe import TextPreprocessing


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder's directory; only to be read."""
    return write_encoder(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def encoder(source: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(source, tmp_path / "tiny"))


def row(backbone: TextBackbone, text: str) -> list[torch.Tensor]:
    ids = torch.from_numpy(backbone.tokenizer.encode([text])[0][None])
    with torch.inference_mode():
        return [value[0] for value in backbone(ids, torch.ones_like(ids))]


def test_encoder_as_sentence_transformers_save_it_is_read_in_full(source: Path) -> None:
    backbone = load_text_backbone(source)
    said = backbone.preprocessing
    assert (said.pooling, said.normalize, said.max_length, said.prefix) == ("mean", True, 40, "")
    assert (backbone.model_name, backbone.weights_label) == ("tiny", "model.safetensors")
    assert backbone.output_shapes == ((32,),)
    assert abs(float(row(backbone, "my card")[0].norm()) - 1) < 1e-5


def test_plain_transformers_directory_has_the_mean_and_the_length_of_the_network(tmp_path: Path) -> None:
    backbone = load_text_backbone(write_encoder(tmp_path, modules=None))
    assert (backbone.preprocessing.pooling, backbone.preprocessing.normalize) == ("mean", False)
    assert backbone.preprocessing.max_length == 64


def test_older_layout_with_the_network_in_a_folder_is_read(tmp_path: Path, source: Path) -> None:
    """Sentence-transformers before version 2 wrote 0_Transformer/."""
    backbone = load_text_backbone(write_encoder(tmp_path, inner="0_Transformer/"))
    assert backbone.weights_sha256 == load_text_backbone(source).weights_sha256


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "max", "include_prompt": True}, "max"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_pooling_is_what_its_folder_says_in_either_form(encoder: Path, config, pooling: str) -> None:
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load_text_backbone(encoder).preprocessing.pooling == pooling


def test_outputs_are_layers_of_one_pass(source: Path) -> None:
    """`mean-1` is the last layer: the feature without its normalisation."""
    backbone = load_text_backbone(source, outputs=("features", "mean-1", "mean-2", "cls-1"))
    features, mean, earlier, first = row(backbone, "where is my money")
    torch.testing.assert_close(features, mean / mean.norm())
    assert not torch.allclose(mean, earlier) and not torch.allclose(mean, first)
    torch.testing.assert_close(
        row(load_text_backbone(source, pooling="cls", normalize=False), "where is my money")[0], first
    )
    for unknown in ("mean-3", "stage1", "cls-0"):
        with pytest.raises(BackboneError, match=r"mean-1\.\.mean-2"):
            load_text_backbone(source, outputs=("features", unknown))


def test_padding_changes_no_row(source: Path) -> None:
    """Of any pooling: what the mask leaves out takes no part, beyond rounding."""
    for pooling in ("mean", "cls", "last", "max"):
        backbone = load_text_backbone(source, pooling=pooling)
        ids = torch.from_numpy(backbone.tokenizer.encode(["where is my money"])[0][None])
        padded = torch.nn.functional.pad(ids, (0, 5), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 5))
        with torch.inference_mode():
            torch.testing.assert_close(backbone(padded, mask)[0], backbone(ids, torch.ones_like(ids))[0])


def test_prefix_length_and_side_make_the_ids(source: Path) -> None:
    data = (source / "tokenizer.json").read_bytes()

    def ids(text: str, **settings) -> list[int]:
        digest = load_text_backbone(source).preprocessing.tokenizer_sha256
        return TextTokenizer(data, TextPreprocessing(tokenizer_sha256=digest, **settings)).encode([text])[0].tolist()

    whole = ids("my card has not arrived", max_length=40)
    assert whole[0] == 2 and whole[-1] == 3 and 0 not in whole  # the file's own padding and truncation are replaced
    assert ids("my card has not arrived", max_length=4) == [*whole[:3], 3]
    assert ids("my card has not arrived", max_length=4, truncation_side="left") == [2, *whole[-3:-1], 3]
    assert ids("card", max_length=40, prefix="my ") == ids("my card", max_length=40)
    assert ids("my card has not arrived", max_length=40, max_characters=7) == ids("my card", max_length=40)
    with pytest.raises(InputError, match="room for a text"):
        ids("card", max_length=3, prefix="my ")


@pytest.mark.parametrize("text", ["", " ", "\0", "a\0b", "🙂👩‍👩‍👧", "مرحبا بالعالم", "one\r\ntwo", "x" * 1_500_000])
def test_any_text_has_ids(source: Path, text: str) -> None:
    """Empty, NUL, emoji, right to left, line ends, three megabytes in one word: at least the special tokens."""
    (ids,) = load_text_backbone(source).tokenizer.encode([text])
    assert ids.dtype == np.int64 and 2 <= len(ids) <= 40


def test_half_a_surrogate_pair_is_no_text(source: Path) -> None:
    with pytest.raises(InputError, match="surrogate"):
        load_text_backbone(source).tokenizer.encode(["\ud83d"])


def test_random_weights_are_asked_for_by_name_and_seeded(encoder: Path) -> None:
    """No weights need to be there; the same seed gives the same ones."""
    (encoder / "model.safetensors").unlink()
    first, again, other = (load_text_backbone(encoder, weights=f"random:{seed}") for seed in (1, 1, 2))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    with pytest.raises(WeightsError, match="random:SEED"):
        load_text_backbone(encoder, weights="random:x")


def test_pickled_weights_are_never_loaded(encoder: Path) -> None:
    """A directory with a pickle alone is refused before anything of it is opened."""
    torch.save({"x": torch.zeros(1)}, encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"nothing pickled"):
        load_text_backbone(encoder)


def test_code_of_a_repository_is_never_run(encoder: Path) -> None:
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (encoder / "config.json").write_text(json.dumps(config))
    (encoder / "code.py").write_text(f"open({str(encoder / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    with pytest.raises(BackboneError, match="no code of a"):
        load_text_backbone(encoder)
    assert not (encoder / "ran").exists()


def _edit(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda at: (at / "tokenizer.json").unlink(), BackboneError, "tokenizer.json"),
        (lambda at: (at / "tokenizer.json").write_bytes(b"{}"), FormatError, "tokenizer"),
        (lambda at: (at / "config.json").unlink(), MissingError, "config.json"),
        (lambda at: (at / "config.json").write_text("{"), FormatError, "must be JSON"),
        (lambda at: (at / "config.json").write_text("[]"), FormatError, "JSON object"),
        (lambda at: _edit(at / "config.json", hidden_size=64), WeightsError, "shape|fit"),
        (lambda at: _edit(at / "config.json", num_hidden_layers=3), WeightsError, "missing"),
        (lambda at: _edit(at / "config.json", is_encoder_decoder=True), BackboneError, "decoder"),
        (lambda at: (at / "model.safetensors").write_bytes(b"x" * 64), WeightsError, "safetensors"),
        (lambda at: (at / "1_Pooling" / "config.json").write_text("{}"), BackboneError, "pooling"),
        (lambda at: _edit(at / "1_Pooling" / "config.json", include_prompt=False), BackboneError, "prefix"),
        (lambda at: (at / "modules.json").write_text('[{"path": "../x", "type": "Pooling"}]'), FormatError, "below"),
        (lambda at: (at / "modules.json").write_text('[{"path": "2", "type": "a.Dense"}]'), BackboneError, "Dense"),
    ],
)  # fmt: skip
def test_damaged_directory_is_refused_in_one_line(encoder: Path, damage, error: type, message: str) -> None:
    damage(encoder)
    with pytest.raises(error, match=message) as caught:
        load_text_backbone(encoder)
    assert isinstance(caught.value, FeatcacheError) and "\n" not in str(caught.value)


def test_name_that_is_no_directory_and_no_hub_id_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="OWNER/MODEL"):
        load_text_backbone("nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        load_text_backbone("nobody/nothing")


def test_hub_encoder_is_read_from_the_hubs_own_cache(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it lies there with its optional files known to be absent, nothing is asked over the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--me--tiny"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name in ("tokenizer_config.json", "config_sentence_transformers.json"):
        absent = repository / ".no_exist" / "abc" / name
        absent.parent.mkdir(parents=True, exist_ok=True)
        absent.touch()
    backbone = load_text_backbone("me/tiny")
    assert (backbone.model_name, backbone.weights_label) == ("me/tiny", "hub")
    assert backbone.weights_sha256 == load_text_backbone(source).weights_sha256


def test_text_preprocessing_survives_json_and_names_what_is_wrong(source: Path) -> None:
    said = load_text_backbone(source, prefix="query: ").preprocessing
    assert TextPreprocessing.from_json(json.loads(json.dumps(said.to_json()))) == said
    with pytest.raises(FormatError, match="stride"):
        TextPreprocessing.from_json({**said.to_json(), "stride": 1})
    for odd in (
        {"max_length": 0},
        {"max_length": True},
        {"pooling": "sum"},
        {"normalize": 1},
        {"tokenizer_sha256": "a"},
    ):
        with pytest.raises(InputError, match=next(iter(odd))):
            TextPreprocessing.from_json({**said.to_json(), **odd})


def test_prefix_is_counted_whole_whatever_the_file_cuts_off() -> None:
    """The tokenizer's own truncation, to five tokens here, is none of the preprocessing's."""
    from text_encoders import tokenizer_json

    from featcache.backbone.text.tokenizer import tokenizer_digest

    data = tokenizer_json()
    settings = TextPreprocessing(
        tokenizer_sha256=tokenizer_digest(data), max_length=7, prefix="where is my money please help me "
    )
    with pytest.raises(InputError, match="2 special tokens and 7 of the prefix"):
        TextTokenizer(data, settings)
