"""A classifier of texts from cache to device: merged, exported, asked, made integers, refused where it must be."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from text_encoders import CARDS, CARDS_L2

import featcache
from featcache.errors import CorruptError, FeatcacheError, InputError, VerificationError
from featcache.formats import find_target
from featcache.graph.write import write_onnx
from featcache.model.directory import load_model, verify_model
from featcache.model.golden import Golden
from featcache.runtime.bundle import open_bundle
from featcache.runtime.prediction import Prediction
from featcache.train.options import LinearOptions
from featcache.verification import verify


@pytest.fixture(scope="module")
def folder(cards: Path) -> Path:
    """An encoder, a table, the cache of its texts, and a head."""
    return cards


@pytest.fixture(scope="module")
def model(cards: Path) -> Path:
    return cards / "model"


@pytest.fixture(scope="module")
def bundle(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text-bundle") / "bundle"
    report = featcache.export(model, out=place, formats=["openvino"], cache=folder / "cache")
    assert {name: made.executed for name, made in report.formats.items()} == {"onnx": True, "openvino": True}
    for made in report.formats.values():
        assert made.tolerance is not None and made.max_abs_diff is not None and made.max_abs_diff <= made.tolerance
    return place


def test_model_of_texts_loads_without_its_encoders_directory(model: Path, tmp_path: Path) -> None:
    """The network, its tokenizer and golden texts are in the MODEL; what is changed there is found out."""
    loaded = load_model(model)
    golden = Golden.load(model / "golden")
    assert golden.suffix == ".txt" and golden.images[0].decode() in dict(CARDS)
    batch = loaded.input.stack([loaded.input.prepare(data) for data in golden.images])
    with torch.inference_mode():
        np.testing.assert_allclose(loaded(torch.from_numpy(batch))[0].numpy(), golden.logits, atol=1e-5)
    assert verify_model(model) == ()
    copy = featcache.model.directory.save_model(loaded, tmp_path / "copy", golden=golden)
    for file in model.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (copy / file.relative_to(model)).read_bytes()
    (copy / "tokenizer.json").write_bytes((copy / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(CorruptError, match=r"tokenizer\.json"):
        load_model(copy)


def test_a_model_that_names_foreign_code_is_refused(model: Path, tmp_path: Path) -> None:
    """Only classes of transformers itself are built, whatever the document says."""
    import shutil

    shutil.copytree(model, tmp_path / "odd")
    document = json.loads((tmp_path / "odd" / "model.json").read_text())
    document["architecture"]["transformers"] |= {"model_type": "own", "auto_map": {"AutoModel": "evil.Network"}}
    (tmp_path / "odd" / "model.json").write_text(json.dumps(document))
    with pytest.raises(FeatcacheError, match="of a kind that transformers"):
        load_model(tmp_path / "odd")


def test_logits_of_a_text_do_not_depend_on_the_batch(model: Path) -> None:
    loaded = load_model(model)
    arrays = [loaded.input.prepare(text.encode()) for text in ("card", "where is my money please help me now")]
    with torch.inference_mode():
        both = loaded(torch.from_numpy(loaded.input.stack(arrays)))[0]
        alone = torch.cat([loaded(torch.from_numpy(one[None]))[0] for one in arrays])
    torch.testing.assert_close(both, alone, atol=1e-3, rtol=1e-4)


def same_answer(one: Prediction, other: Prediction) -> None:
    """Which instructions a product takes depends on how many rows it has, on some processors."""
    assert [name for name, _ in one.top] == [name for name, _ in other.top]
    np.testing.assert_allclose([value for _, value in one.top], [value for _, value in other.top], atol=1e-4)


def test_bundle_answers_texts_files_of_lines_and_columns(bundle: Path, tmp_path: Path) -> None:
    from featcache import predict

    [one] = predict(bundle, "where is my card now")
    assert one.label in ("money", "time") and one.path == "where is my card now"
    (tmp_path / "questions.txt").write_text("where is my card now\n\nhow long does it take\n", encoding="utf-8")
    lines = predict(bundle, tmp_path / "questions.txt")
    assert [line.path.rpartition(":")[2] for line in lines] == ["1", "3"]
    same_answer(lines[0], one)
    with open(tmp_path / "more.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "note", "text"), ("1", "where is my card now", "x"), ("2", "", "y")])
    rows = predict(bundle, tmp_path / "more.csv", input_options={"text_column": "note"})
    assert [row.path for row in rows] == ["more.csv:note:2"]
    same_answer(rows[0], one)
    [failed] = predict(bundle, " ")
    assert failed.reason == "the text is empty"
    many = predict(bundle, [text for text, _ in CARDS])
    assert [one.path for one in many] == [text for text, _ in CARDS]


def test_bundle_is_evaluated_on_its_table_as_the_head_was(bundle: Path, folder: Path) -> None:
    evaluation = featcache.evaluate(bundle, folder / "cards.csv")
    assert evaluation.n == len(CARDS) and evaluation.accuracy is not None and evaluation.accuracy > 0.9
    other = featcache.evaluate(bundle, folder / "cards.csv", format="openvino")
    assert other.accuracy == evaluation.accuracy


def test_known_texts_are_answered_from_the_cache(model: Path, folder: Path) -> None:
    from featcache import predict

    known, unknown = predict(model, [CARDS[0][0], "a text of no table"], cache=folder / "cache")
    assert known.cached and not unknown.cached
    [head] = predict(folder / "head", [CARDS[0][0]], cache=folder / "cache")
    assert head.cached and head.label == known.label


def test_predict_imports_neither_torch_nor_transformers(bundle: Path) -> None:
    program = (
        "import sys; from featcache import predict; [one] = predict(sys.argv[1], 'my card'); print(one.label);"
        "print(sorted({'torch', 'transformers', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle)], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[1] == "[]"


def test_bundle_says_how_a_text_becomes_its_input(bundle: Path) -> None:
    document = json.loads((bundle / "preprocess.json").read_text())
    assert document["preprocessing"]["input"] == "text" and document["tokenizer"] == "tokenizer.json"
    given = document["tensors"]["onnx"]["inputs"]["input_ids"]
    assert given == {"dtype": "int64", "layout": "NL", "shape": ["N", "L"], "padding": -1}
    card = (bundle / "model_card.md").read_text()
    assert 'pipeline_tag: "text-classification"' in card and "# Text classifier" in card
    assert verify(bundle).ok
    assert not (bundle / "snippets").exists()


def test_device_developer_needs_the_tokenizer_and_the_file_alone(bundle: Path) -> None:
    """What preprocess.json says, done by hand, gives predict's answer."""
    import onnxruntime
    from tokenizers import Tokenizer

    from featcache import predict

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = np.array([[*tokenizer.encode("where is my card").ids, -1, -1]], dtype=np.int64)
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"))
    (logits,) = session.run(["logits"], {"input_ids": ids})
    labels = (bundle / "labels.txt").read_text().splitlines()
    [prediction] = predict(bundle, "where is my card")
    assert labels[int(logits[0].argmax())] == prediction.label


def test_graph_is_the_same_whether_weights_stand_aside_while_it_is_simplified(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, written = load_model(model), []
    for least in (1, 10**9):
        monkeypatch.setattr("featcache.graph.passes._LARGE", least)
        written.append(write_onnx(loaded, tmp_path / f"{least}.onnx").read_bytes())
    assert written[0] == written[1]


def test_integers_cost_little_and_take_a_third(folder: Path, model: Path, tmp_path: Path) -> None:
    """Products and the table of tokens are integers; batch and neighbours change no row."""
    result = featcache.quantize(model, cache=folder / "cache", out=tmp_path / "int8", precision="int8-dynamic")
    assert result.accuracy_after_refit > result.accuracy_float - 1.5 / result.n
    assert result.bytes_after < 0.8 * result.bytes_before  # of a network as small as this graph itself counts
    stored = load_model(tmp_path / "int8").quantization
    assert stored is not None and any("word_embeddings" in name for name in stored.weights)
    report = featcache.export(tmp_path / "int8", out=tmp_path / "bundle", cache=folder / "cache")
    assert report.formats["onnx"].executed


def test_half_precision_halves_the_weights(folder: Path, model: Path, tmp_path: Path) -> None:
    result = featcache.quantize(model, cache=folder / "cache", out=tmp_path / "half", precision="fp16")
    assert result.accuracy_after_refit > result.accuracy_float - 1.5 / result.n  # at most one of those on the border
    assert load_model(tmp_path / "half").halves


@pytest.mark.target
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "fp16"])
def test_tensorflow_lite_answers_texts_of_every_length(
    folder: Path, model: Path, tmp_path: Path, precision: str
) -> None:
    """One file holds a graph for each length, the weights once; a text takes the shortest that it fits in."""
    if (reason := find_target("tflite").available()) is not None:
        pytest.skip(f"tflite: {reason}")
    smaller = tmp_path / "smaller"
    featcache.quantize(model, cache=folder / "cache", out=smaller, precision=precision)  # type: ignore[arg-type]
    report = featcache.export(smaller, out=tmp_path / "bundle", formats=["tflite"], cache=folder / "cache")
    made, reference = report.formats["tflite"], report.formats["onnx"]
    assert made.executed and made.n_compared > 10
    assert made.bytes < 1.6 * reference.bytes  # one set of weights; of so small a network the graphs count
    document = json.loads((tmp_path / "bundle" / "preprocess.json").read_text())["tensors"]["tflite"]["inputs"]
    assert document["input_ids"]["signatures"] == {"tokens_32": [1, 32], "tokens_40": [1, 40]}
    bundle = open_bundle(tmp_path / "bundle")
    texts = ["card", "where is my money please help me now", " ".join(["card"] * 36), " ".join(["money"] * 90)]
    ids = bundle.input.stack([bundle.input.prepare(text.encode()) for text in texts])
    with bundle.open("tflite", threads=1) as runner, bundle.open("onnx", threads=1) as other:
        # products with rounded rows are floats in this file
        tolerance = 1e-4 if "int8" not in precision else 0.1 * float(np.abs(other.run(ids)).max())
        np.testing.assert_allclose(runner.run(ids), other.run(ids), atol=tolerance)
        np.testing.assert_allclose(runner.run(ids[:1, :3]), runner.run(ids)[:1], atol=1e-4)
        with pytest.raises(InputError, match="a text must have at most 40 tokens, got 41"):
            runner.run(np.ones((1, 41), dtype=np.int64))


@pytest.mark.parametrize(
    ("verb", "settings"),
    [("prune", {"method": "channel", "amount": 0.3}), ("quantize", {"method": "qat"}), ("recover", {})],
)
def test_what_needs_images_says_so(
    folder: Path, model: Path, tmp_path: Path, verb: str, settings: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"needs a backbone of images"):
        getattr(featcache, verb)(model, cache=folder / "cache", out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_format_that_holds_images_alone_says_so(folder: Path, model: Path, tmp_path: Path) -> None:
    """A format that asks for pixels names the kind; no bundle is left."""
    for name in ("ncnn", "coreml"):
        if find_target(name).available() is None:
            with pytest.raises(VerificationError, match=rf"'{name}' must be able to hold .*classifiers of images"):
                featcache.export(model, out=tmp_path / "bundle", formats=[name])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.long
def test_one_command_makes_all_of_a_table(folder: Path, tmp_path: Path) -> None:
    report = featcache.run(
        folder / "cards.csv", out=tmp_path / "job", backbone=str(folder / "tiny"), head=LinearOptions(l2=CARDS_L2)
    )
    assert [row["model"] for row in report.table] == ["float", "int8"]
    assert any("nothing was pruned" in note for note in report.notes)
    assert Path(report.report_html).is_file() and (Path(report.bundle) / "tokenizer.json").is_file()
