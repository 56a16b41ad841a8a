"""A bundle of texts over sockets: JSON, plain text, files, tensors of texts or ids, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_photo
from serving import Running, running

from featcache.errors import InputError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.deployed_texts import DeployedTexts
from featcache.heads.base import softmax
from featcache.runtime import open_bundle, predict
from featcache.serve.forms import MOST_TEXT_BYTES, form_of

ASK = "/models/bundle/classify"
AS_JSON = {"Content-Type": "application/json"}
TEXTS = ["where is my card", "how long does it take to come to me please help now", "money"]


@pytest.fixture(scope="module")
def answering(cards: Path) -> Iterator[Running]:
    """The client of a server of the bundle of texts, which knows its cache."""
    with running([cards / "bundle"], cache=cards / "cache") as server:
        yield server


def ask(server: Running, *texts: Any, query: str = "") -> tuple[int, Any]:
    return server.post(ASK + query, json.dumps({"texts": texts}), AS_JSON)


def test_texts_are_answered_as_predict_answers_them(answering: Running, cards: Path) -> None:
    """Several in one request, in their order, whatever their lengths."""
    expected = predict(cards / "bundle", TEXTS)
    status, entries = ask(answering, *TEXTS)
    assert status == 200
    assert [(entry["file"], entry["label"]) for entry in entries] == [(None, one.label) for one in expected]
    np.testing.assert_allclose(
        [entry["probability"] for entry in entries], [one.probability for one in expected], atol=1e-4
    )
    assert sorted(entries[0]) == ["cached", "file", "label", "probability", "top", "unknown"]
    assert len(ask(answering, "card", query="?top=1")[1][0]["top"]) == 1


def test_one_text_may_be_the_body_and_texts_may_be_files(answering: Running, cards: Path) -> None:
    """Also with the Content-Type that curl says by itself, of a text and of JSON."""
    [expected] = predict(cards / "bundle", "where is my card")
    body = b"where is my card"
    curls_own = {"Content-Type": "application/x-www-form-urlencoded"}
    answers = [
        answering.post(ASK, body, {"Content-Type": "text/plain; charset=utf-8"}),
        answering.post(ASK, body, curls_own),
        answering.post(ASK, json.dumps({"texts": [body.decode()]}), curls_own),
        answering.upload(ASK, [("a.txt", b"\xef\xbb\xbf" + body)]),
    ]
    assert [status for status, _ in answers] == [200] * 4
    assert [entries[0]["label"] for _, entries in answers] == [expected.label] * 4
    assert [entries[0]["file"] for _, entries in answers] == [None, None, None, "a.txt"]
    status, entries = answering.post(ASK, b'{"texts": ["card"]}', {"Content-Type": "text/plain"})
    assert (status, len(entries)) == (200, 1)  # braces and all, it is a text


def test_a_bad_text_among_several_is_an_entry_and_alone_it_is_refused(answering: Running, tmp_path: Path) -> None:
    large = "card " * (MOST_TEXT_BYTES // 5 + 1)
    status, entries = ask(answering, "card", " \n", large)
    assert status == 200
    assert [sorted(entry) for entry in entries[1:]] == [["error", "file"]] * 2
    assert entries[1]["error"] == "the text is empty"
    assert entries[2]["error"].startswith(f"a text must have at most {MOST_TEXT_BYTES} bytes, got ")
    _, [entry] = answering.upload(ASK, [("latin.txt", "café".encode("latin-1"))])
    assert "must be UTF-8 text" in entry["error"]
    write_photo(tmp_path / "photo.jpg", seed=1)
    photo = (tmp_path / "photo.jpg").read_bytes()
    plain = {"Content-Type": "text/plain"}
    for body, headers, wanted in (
        (b"", plain, 400), (b"  ", plain, 400), (large.encode(), plain, 413), (b"caf\xe9", plain, 400),
        (photo, {}, 400), (photo, {"Content-Type": "image/jpeg"}, 415),
    ):  # fmt: skip
        status, answer = answering.post(ASK, body, headers)
        assert (status, list(answer)) == (wanted, ["error"]), body[:20]
        assert len(answer["error"].splitlines()) == 1


@pytest.mark.parametrize(
    "body",
    [
        "", "{", "[]", "3", '"card"', "{}", '{"texts": []}', '{"texts": "card"}', '{"texts": [3]}', '{"texts": [null]}',
        '{"texts": ["card"], "top": 3}', '{"texts": ["\\ud800"]}', '{"text": "card"}',
    ],
)  # fmt: skip
def test_json_of_another_form_is_refused_in_a_line(answering: Running, body: str) -> None:
    status, answer = answering.post(ASK, body, AS_JSON)
    assert (status, list(answer)) == (400, ["error"])
    assert len(answer["error"].splitlines()) == 1


def test_a_text_for_a_model_of_images_is_refused_in_a_line(server: Running) -> None:
    status, answer = server.post("/models/pets/classify", json.dumps({"texts": ["card"]}), AS_JSON)
    assert status == 415 and answer["error"].startswith("not an image file")
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["card"]}
    status, answer = server.post("/v2/models/pets/infer", json.dumps({"inputs": [tensor]}))
    assert (status, answer["error"]) == (400, "the input's name must be 'image', got 'text'")


def test_texts_that_the_cache_knows_are_answered_from_it_and_counted(answering: Running, cards: Path) -> None:
    def counted() -> list[float]:
        line = 'featcache_images_total{model="bundle",outcome="%s",version="1"}'
        return [answering.metric(line % outcome) for outcome in ("cached", "computed", "failed")]

    before = counted()
    _, entries = ask(answering, "the now", "a text of no table", "")
    assert [entry.get("cached") for entry in entries] == [True, False, None]
    assert [after - was for after, was in zip(counted(), before, strict=True)] == [1, 1, 1]
    [computed] = predict(cards / "bundle", "the now")
    assert entries[0]["label"] == computed.label
    assert entries[0]["probability"] == pytest.approx(computed.probability, abs=1e-3)


def test_metadata_says_texts_or_ids(answering: Running) -> None:
    listed = json.loads(answering.get("/models")[1])[0]
    assert (listed["input"], listed["tokens"], "image" in listed) == ("text", 40, False)
    assert json.loads(answering.get("/v2/models/bundle")[1])["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1]},
        {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
    ]


def infer(server: Running, tensor: dict[str, Any], binary: bytes = b"") -> tuple[int, Any]:
    if binary:
        tensor = {**tensor, "parameters": {"binary_data_size": len(binary)}}
    text = json.dumps({"inputs": [tensor], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
    return server.post("/v2/models/bundle/infer", text + binary, headers)


def test_tensors_of_texts_and_of_ids_have_the_same_answers(answering: Running, cards: Path) -> None:
    """In JSON and in binary, as the protocol writes strings there: a length in four bytes, then the text."""
    bundle = open_bundle(cards / "bundle")
    ids = bundle.input.stack([bundle.input.prepare(text.encode()) for text in TEXTS])
    with bundle.open(threads=1) as runner:
        expected = softmax(runner.run(ids))
    strings = {"name": "text", "datatype": "BYTES", "shape": [3]}
    numbers = {"name": "input_ids", "datatype": "INT64", "shape": list(ids.shape)}
    binary = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in TEXTS)
    for status, answer in (
        infer(answering, {**strings, "data": TEXTS}), infer(answering, strings, binary),
        infer(answering, {**numbers, "data": ids.tolist()}), infer(answering, numbers, ids.astype("<i8").tobytes()),
    ):  # fmt: skip
        assert status == 200, answer
        [output] = answer["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({"name": "image"}, "name must be 'text' or 'input_ids', got 'image'"),
        ({"datatype": "UINT8"}, "datatype of 'text' must be 'BYTES'"),
        ({"shape": [2, 1]}, "shape of 'text' must be [N]"),
        ({"data": ["card"]}, "data must be a list of 2 strings"),
        ({"data": ["card", 3]}, "data must be a list of 2 strings"),
        ({"data": ["card", "\ud800"]}, "half a surrogate pair"),
        ({"data": ["card", ""]}, "the text is empty"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 0]}, "shape of 'input_ids' must be [N, L]"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [2, 6000]}, "ids must be 0 to"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [2, -1, 3]}, "only behind them"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [-1, -1]}, "must hold 1 to 40 ids"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 41], "data": [2] * 41}, "must hold 1 to 40 ids"),
        ({"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [1 << 63]}, "whole numbers, got"),
    ],
)
def test_tensors_that_the_model_does_not_take_are_refused(
    answering: Running, tensor: dict[str, Any], words: str
) -> None:
    status, answer = infer(answering, {"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS[:2], **tensor})
    assert status == 400
    assert words in answer["error"] and len(answer["error"].splitlines()) == 1


@pytest.mark.parametrize("binary", [b"\x04\0\0\0card", b"\x05\0\0\0card\x01\0\0\0a", b"\x04\0\0\0card\x01\0\0\0ab"])
def test_binary_texts_that_do_not_fit_their_lengths_are_refused(answering: Running, binary: bytes) -> None:
    status, answer = infer(answering, {"name": "text", "datatype": "BYTES", "shape": [2]}, binary)
    assert status == 400 and "binary values must be 2 texts" in answer["error"]


def test_texts_of_any_lengths_at_once_are_answered_as_alone(answering: Running) -> None:
    """Batches that several clients share: neighbours and padding change nothing that is seen."""
    asked = [f"{'card ' * length}{number}" for number, length in enumerate((1, 30, 2, 25, 3, 1, 20, 2) * 4)]
    alone = [ask(answering, text)[1][0]["probability"] for text in asked]
    found: dict[int, float] = {}

    def work(number: int) -> None:
        found[number] = ask(answering, asked[number])[1][0]["probability"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[number] for number in range(len(asked))], alone, atol=1e-3)


@pytest.mark.parametrize(
    ("lengths", "count"),
    [((8,), 1), ((8, 8, 9), 3), ((8, 256), 2), ((8, 8, 256), 2), ((256, 8, 8), 2), ((512,) * 6, 4), ((4000, 4000), 1)],
)
def test_a_batch_is_of_texts_that_waste_little(cards: Path, lengths: tuple[int, ...], count: int) -> None:
    """At most half of it is padding, and its tokens are few, though one text is always run."""
    deployed = open_bundle(cards / "bundle").input
    assert isinstance(deployed, DeployedTexts)
    assert deployed.together([np.ones(length, dtype=np.int64) for length in lengths]) == count


def test_a_model_of_another_input_kind_is_refused_by_name() -> None:
    class Numbers:
        input = "numbers"

    class DeployedNumbers(DeployedInput):
        tensor, noun, pipeline, suffix = "numbers", "row", "tabular-classification", ".num"
        preprocessing = Numbers()  # type: ignore[assignment]
        prepare = example = synthetic = golden = tensors = document = described = lambda self, *more: None  # type: ignore[assignment]

    with pytest.raises(InputError, match=r"must read images or texts, this one reads rows \('numbers'\)"):
        form_of(DeployedNumbers())


def test_the_server_of_a_text_bundle_imports_neither_torch_nor_transformers(cards: Path) -> None:
    program = """
import json, sys, threading, urllib.request
from featcache.serve import serve
def ask(started):
    body = json.dumps({"texts": ["my card"]}).encode()
    address, kind = f"{started.url}/models/bundle/classify", {"Content-Type": "application/json"}
    request = urllib.request.Request(address, body, kind)
    def work():
        print(json.loads(urllib.request.urlopen(request).read())[0]["label"])
        print(sorted({"torch", "transformers", "timm"} & set(sys.modules)))
        started.stop()
    threading.Thread(target=work).start()
serve([sys.argv[1]], port=0, cache=sys.argv[2], ready=ask)
"""
    command = [sys.executable, "-c", program, str(cards / "bundle"), str(cards / "cache")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60)
    label, loaded = done.stdout.splitlines()
    assert label in ("money", "time") and loaded == "[]"
