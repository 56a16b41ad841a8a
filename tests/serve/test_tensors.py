"""Open Inference Protocol requests: what they hold, and one line for each thing that is wrong with one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from featcache.errors import InputError
from featcache.serve.tensors import TensorSpec, read_request, write_answer

SHAPE = (1, 2, 3)
IMAGES = np.arange(12, dtype=np.uint8).reshape(2, *SHAPE)
TENSOR: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [2, *SHAPE], "data": IMAGES.tolist()}
BINARY = {**{key: TENSOR[key] for key in ("name", "datatype", "shape")}, "parameters": {"binary_data_size": 12}}


IMAGE = (TensorSpec("image", "UINT8", SHAPE),)


def read(
    body: bytes, header_length: str | None = None, *, inputs: tuple[TensorSpec, ...] = IMAGE, noun: str = "image"
) -> Any:
    return read_request(
        body, header_length=header_length, inputs=inputs, outputs=("logits", "probabilities"), most=4, noun=noun
    )


def with_tensor(**changes: Any) -> bytes:
    return json.dumps({"inputs": [{**TENSOR, **changes}]}).encode()


def test_nested_flat_and_binary_values_are_the_same_images() -> None:
    text = json.dumps({"id": "7", "inputs": [BINARY]}).encode()
    for asked in (
        read(with_tensor()),
        read(with_tensor(data=IMAGES.reshape(-1).tolist())),
        read(text + IMAGES.tobytes(), str(len(text))),
    ):
        np.testing.assert_array_equal(asked.values, IMAGES)
        assert asked.values.dtype == np.uint8
        assert asked.outputs == (("logits", False), ("probabilities", False))


def test_outputs_are_those_asked_for_binary_where_it_is_said() -> None:
    body = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
    body["outputs"] = [{"name": "probabilities"}, {"name": "logits", "parameters": {"binary_data": False}}]
    assert read(json.dumps(body).encode()).outputs == (("probabilities", True), ("logits", False))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be JSON"),
        (b"\xff\xfe", "must be JSON"),
        (b"[" * 5000, "nested more than"),
        (b"[]", "must be a JSON object, got a list"),
        (b"{}", "inputs must be a list of one tensor"),
        (b'{"inputs":[1]}', "inputs must be a list of one tensor"),
        (with_tensor(name="pixels"), "name must be 'image', got 'pixels'"),
        (with_tensor(datatype="FP32"), "datatype of 'image' must be 'UINT8', got 'FP32'"),
        (with_tensor(shape=[2, 2, 1, 3]), "shape of 'image' must be [N, 1, 2, 3]"),
        (with_tensor(shape=[0, *SHAPE]), "N of at least 1"),
        (with_tensor(shape=[-1, *SHAPE]), "N of at least 1"),
        (with_tensor(shape=[True, *SHAPE]), "shape of 'image'"),
        (with_tensor(shape=["2", *SHAPE]), "shape of 'image'"),
        (with_tensor(shape=3), "shape of 'image'"),
        (with_tensor(shape=[10**30, *SHAPE]), "at most 4 images"),
        (with_tensor(shape=[5, *SHAPE]), "at most 4 images, got 5"),
        (with_tensor(data=[1, 2]), "12 whole numbers 0 to 255, got 2"),
        (with_tensor(data=[[1, 2], [3]]), "12 whole numbers"),
        (with_tensor(data=[256] * 12), "0 to 255, got 256 to 256"),
        (with_tensor(data=[-1] * 12), "got -1 to -1"),
        (with_tensor(data=[0.5] * 12), "got others among them"),
        (with_tensor(data=["1"] * 12), "got others among them"),
        (with_tensor(data=[None] * 12), "got others among them"),
        (with_tensor(data=[True] * 12), "got others among them"),
        (with_tensor(data=[10**30] * 12), "12 whole numbers"),
        (with_tensor(data=[]), "12 whole numbers"),
        (with_tensor(data="AAAA"), "got str"),
        (with_tensor(parameters={"binary_data_size": 12}), "data or binary_data_size, got both"),
        (with_tensor(parameters=3), "parameters of the input must be a JSON object"),
        (with_tensor(data=[float("nan")] * 12), "NaN is no number of JSON"),
        (with_tensor().replace(b"11", b"1e999"), "finite"),
        (json.dumps({"inputs": [TENSOR, TENSOR]}).encode(), "one tensor"),
        (json.dumps({"inputs": [TENSOR], "id": 3}).encode(), "id must be a text"),
        (json.dumps({"inputs": [TENSOR], "outputs": 3}).encode(), "outputs must be a list"),
        (json.dumps({"inputs": [TENSOR], "outputs": [{"name": "x"}]}).encode(), "an output's name must be one of"),
        (json.dumps({"inputs": [TENSOR], "outputs": [{"name": []}]}).encode(), "an output's name must be one of"),
        (json.dumps({"inputs": [TENSOR], "outputs": [{"name": "logits"}] * 2}).encode(), "named once each"),
        (json.dumps({"inputs": [TENSOR], "parameters": {"binary_data_output": 1}}).encode(), "must be true or false"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_line(body: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(body)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("length", "binary", "words"),
    [
        ("-1", IMAGES.tobytes(), "Inference-Header-Content-Length must be"),
        ("1e3", IMAGES.tobytes(), "Inference-Header-Content-Length must be"),
        ("9" * 5000, IMAGES.tobytes(), "Inference-Header-Content-Length must be"),
        ("99999", IMAGES.tobytes(), "Inference-Header-Content-Length must be"),
        (None, IMAGES.tobytes()[:-1], "the 12 bytes of the shape"),
        (None, IMAGES.tobytes() + b"0", "the 12 bytes of the shape"),
    ],
)
def test_binary_values_have_the_size_that_is_stated(length: str | None, binary: bytes, words: str) -> None:
    text = json.dumps({"inputs": [BINARY]}).encode()
    with pytest.raises(InputError, match=words):
        read(text + binary, length or str(len(text)))


def test_an_answer_holds_binary_values_after_its_json_in_order() -> None:
    tensors = {"a": np.array([[1, 2]], dtype=np.float32), "b": np.array([[3, 4]], dtype=np.float32)}
    body, length = write_answer({"model_name": "m"}, tensors, [("b", True), ("a", False)])
    assert length is not None
    described = json.loads(body[:length])
    assert described["outputs"][1] == {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    assert described["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(body[length:], dtype="<f4").tolist() == [3.0, 4.0]
    assert write_answer({}, tensors, [("a", False)])[1] is None
