"""Requests that no well-meaning client sends: each is one line of JSON and its right status; the server goes on."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from serving import Running, form, running

from featcache.errors import InputError
from featcache.serve import ServeSettings
from featcache.serve.logs import log_as_json
from featcache.serve.multipart import read_files
from featcache.serve.refusals import RefusedError
from featcache.serve.service import Service

SMALL = ServeSettings(max_body_mb=0.2, body_seconds=1.0, max_queue=4, reload_seconds=60)


@pytest.fixture(scope="module")
def narrow(pets: Path):
    """A server with narrow bounds."""
    with running([pets], settings=SMALL) as started:
        yield started


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 4096)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def assert_alive(server: Running) -> None:
    assert server.get("/v2/health/live")[0] == 200


def line_of(answer: Any) -> str:
    assert list(answer) == ["error"]
    assert len(answer["error"].splitlines()) == 1
    assert "Traceback" not in answer["error"]
    return str(answer["error"])


def test_not_an_image_is_415_whatever_it_says_it_is(server: Running) -> None:
    for body, words in (
        (b"hello", "not an image file"), (b"", "the file is empty"), (b"\xff\xd8\xff\xe0junk", "JPEG"),
        (b"GIF89a", "image"), (b"%PDF-1.4", "not an image file"), (b"{}", "not an image file"),
    ):  # fmt: skip
        status, answer = server.post("/models/pets/classify", body, {"Content-Type": "image/jpeg"})
        assert status == 415, body
        assert words in line_of(answer)


@pytest.mark.parametrize("size", [(20_000, 10_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_413_and_decodes_nothing(server: Running, size: tuple[int, int]) -> None:
    """Beyond our own bound on pixels, and beyond the one at which Pillow itself stops."""
    status, answer = server.post("/models/pets/classify", bomb(*size))
    assert status == 413
    assert "an image must have at most 134217728 pixels" in line_of(answer)
    status, entries = server.upload("/models/pets/classify", [("bomb.png", bomb(*size))])
    assert (status, entries[0]["file"]) == (200, "bomb.png")
    assert "an image must have at most" in entries[0]["error"]


def test_a_body_beyond_the_bound_is_413_stated_or_not(narrow: Running) -> None:
    for body in (bytes(300_000), iter([bytes(60_000)] * 5)):  # the latter in chunks, its size unsaid
        status, answer = narrow.post("/models/pets/classify", body)
        assert status == 413
        assert line_of(answer) == "a body must be at most 200000 bytes, this one is larger"
    connection = socket.create_connection(("127.0.0.1", narrow.port), timeout=10)
    head = "POST /v2/models/pets/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999\r\n\r\n"
    connection.sendall(head.encode())
    assert b" 413 " in connection.recv(4096)
    connection.close()
    assert_alive(narrow)


def test_a_slow_client_is_cut_off_and_nobody_waits_for_it(narrow: Running, photos: Path) -> None:
    connection = socket.create_connection(("127.0.0.1", narrow.port), timeout=10)
    connection.sendall(b"POST /models/pets/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    started = time.monotonic()
    assert narrow.post("/models/pets/classify", (photos / "cat" / "00.jpg").read_bytes())[0] == 200
    answer = connection.recv(4096)
    assert 0.5 < time.monotonic() - started < 8
    assert b" 408 " in answer
    assert b"a body must arrive within 1 seconds, got 3 bytes of it" in answer
    connection.close()


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(narrow: Running) -> None:
    for _ in range(20):
        connection = socket.create_connection(("127.0.0.1", narrow.port), timeout=10)
        connection.sendall(b"POST /models/pets/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        connection.close()
    assert_alive(narrow)
    assert narrow.metric("featcache_waiting_images") == 0


def test_half_open_connections_do_not_stop_the_next_one(narrow: Running, photos: Path) -> None:
    waiting = [socket.create_connection(("127.0.0.1", narrow.port), timeout=10) for _ in range(200)]
    for connection in waiting:
        connection.sendall(b"POST /models/pets/classify HTTP/1.1\r\nHost: loc")
    started = time.monotonic()
    assert narrow.post("/models/pets/classify", (photos / "cat" / "00.jpg").read_bytes())[0] == 200
    assert time.monotonic() - started < 5
    for connection in waiting:
        connection.close()


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"x", "multipart/form-data", "must state its boundary"),
        (b"x", "multipart/form-data; boundary=b", "multipart/form-data"),
        (b"--boundary--\r\n", "multipart/form-data; boundary=boundary", "one or more files"),
        (form([("a", b"1")])[0][:-4], form([])[1], "ends before its last boundary"),
        (form([("a", b"1")], "photo")[0], form([])[1], "fields must be named 'files', got 'photo'"),
        (form([("a", b"1")])[0].replace(b"Content-Disposition", b"X"), form([])[1], "fields must be named 'files'"),
        (b"--boundary\r\n" + b"a" * 9000, form([])[1], "multipart/form-data"),
    ],
)
def test_a_form_that_is_none_is_400(server: Running, body: bytes, content_type: str, words: str) -> None:
    status, answer = server.post("/models/pets/classify", body, {"Content-Type": content_type})
    assert status == 400
    assert words in line_of(answer)


def test_more_images_than_the_queue_holds_are_413(narrow: Running, photos: Path) -> None:
    data = (photos / "cat" / "00.jpg").read_bytes()
    status, answer = narrow.upload("/models/pets/classify", [("a", data)] * 5)
    assert status == 413
    assert line_of(answer) == "a request must hold at most 4 images, got 5: send several requests"


def test_a_full_queue_answers_503_and_when_to_come_again(narrow: Running, photos: Path) -> None:
    """Of many clients at once some are refused, the others answered; none hangs."""
    data = (photos / "cat" / "00.jpg").read_bytes()
    body, content_type = form([("a", data)] * 3)
    found: list[tuple[int, str | None, bytes]] = []

    def ask() -> None:
        for _ in range(6):
            status, answer, headers = narrow.request(
                "POST", "/models/pets/classify", body, {"Content-Type": content_type}
            )
            found.append((status, headers.get("retry-after"), answer))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in found} == {200, 503}
    for status, retry, answer in found:
        assert retry == ("1" if status == 503 else None)
        assert status == 200 or "inputs wait already" in line_of(json.loads(answer))
    assert narrow.metric("featcache_waiting_images") == 0


def test_room_is_counted_and_given_back() -> None:
    class Gauge:
        value = 0

        def set(self, value: int) -> None:
            self.value = value

    class Metrics:
        waiting = Gauge()

    service = Service(None, SMALL, Metrics())  # type: ignore[arg-type]
    with service.room_for(3, "image"):
        service.check_room()
        with service.room_for(1, "image"), pytest.raises(RefusedError) as caught:
            service.check_room()
        assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
        with pytest.raises(RefusedError, match="3 inputs wait already, 4 is the most"), service.room_for(2, "image"):
            pass
    assert Metrics.waiting.value == 0


def test_addresses_methods_and_parameters_that_are_none(server: Running) -> None:
    for method, path, status in (
        ("GET", "/", 404), ("GET", "/models/pets/classify", 405), ("POST", "/metrics", 405),
        ("POST", "/models/%2e%2e/classify", 404), ("POST", "/models/a%00b/classify", 404),
        ("POST", f"/models/{'x' * 5000}/classify", 404), ("GET", "/docs/../server.py", 404),
        ("POST", "/models/pets/classify?top=0", 400), ("POST", "/models/pets/classify?top=x", 400),
        ("POST", "/models/pets/classify?top=" + "9" * 50, 400),
    ):  # fmt: skip
        found, data, headers = server.request(method, path, b"x" if method == "POST" else None)
        assert found == status, path
        line_of(json.loads(data))
        assert headers["content-type"] == "application/json"
        assert headers["x-content-type-options"] == "nosniff"


def test_a_tensor_that_is_wrong_is_400(server: Running) -> None:
    for body in (b"", b"{", b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [NaN]}]}'):
        status, answer = server.post("/v2/models/pets/infer", body)
        assert status == 400
        line_of(answer)


def test_what_is_no_http_ends_its_own_connection_only(server: Running) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(b"\x16\x03\x01\x02\x00" + bytes(200) + b"\r\n\r\n")
    connection.recv(4096)
    connection.close()
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    client.request("GET", "/v2")  # kept alive: two requests on one connection
    client.getresponse().read()
    client.request("GET", "/v2")
    assert client.getresponse().status == 200
    client.close()


def test_what_the_form_library_complains_of_is_a_json_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json()
    bad = b"--boundary\r\nContent-Disposition\x01: x\r\n\r\n1\r\n--boundary--\r\n"
    with pytest.raises(InputError, match="RFC 7578"):
        read_files(bad, "multipart/form-data; boundary=boundary")
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["warning"]
