"""Connections that keep a server waiting: they are given a while, make room for others, and hold nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import resource
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving import Running, running
from studio_client import open_studio, studio_process

from featcache.serve.connections import BoundedConnection, bounded_connections
from featcache.serve.refusals import RefusedError
from featcache.serve.studio import limits
from featcache.serve.studio.desk import Desk
from featcache.serve.studio.limits import BodyLimit

GET = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"
CROWD = 1000
WHILE = 30.0  # that each of them is given: whoever is answered sooner has waited for none of them


@contextlib.contextmanager
def crowd(port: int, path: str) -> Iterator[list[socket.socket]]:
    """Give a thousand connections, a fifth of each kind that keeps a server waiting; a thread sends on some of them."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    first = (
        b"",  # nothing at all
        head,  # a head that ends nowhere, of which another byte comes now and then
        head + b"Content-Length: 90000\r\n\r\n{",  # a body that does
        GET * 3,  # several questions, no answer of which is read
        GET,  # one question, half closed
    )
    taken: list[socket.socket] = []
    stopped = threading.Event()

    def drip() -> None:
        while not stopped.wait(1):
            for number in (1, 2):
                for raw in taken[number::5]:
                    with contextlib.suppress(OSError):
                        raw.send(b"x")

    dripping = threading.Thread(target=drip)
    try:
        for number in range(CROWD):
            taken.append(raw := socket.create_connection(("127.0.0.1", port), timeout=10))
            raw.sendall(first[number % 5])
            if number % 5 == 4:
                raw.shutdown(socket.SHUT_WR)
        dripping.start()
        yield taken
    finally:
        stopped.set()
        if dripping.is_alive():
            dripping.join()
        for raw in taken:
            raw.close()


def enough_descriptors() -> None:
    """Both ends of each connection are in this process."""
    bounded_connections()  # raises the bound
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * CROWD + 500:
        pytest.skip("this system allows too few descriptors for both ends of a thousand connections")


def test_a_thousand_slow_connections_do_not_stop_the_next_one_at_the_server(pets: Path, photos: Path) -> None:
    enough_descriptors()
    data = (photos / "cat" / "00.jpg").read_bytes()
    with running([pets]) as server, crowd(server.port, "/v2/models/pets/infer"):
        for _ in range(3):
            started = time.monotonic()
            assert server.post("/models/pets/classify", data)[0] == 200
            assert time.monotonic() - started < WHILE


def test_a_thousand_slow_connections_do_not_stop_the_next_one_at_the_studio(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty who wait for a head that never comes are among them."""
    enough_descriptors()
    monkeypatch.setattr(Desk, "head_revision", lambda desk, number: -1)
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        path = f"/api/datasets/{entry['id']}"
        with crowd(client.port, f"{path}/labels"), contextlib.ExitStack() as waiting:
            for _ in range(40):
                connection = waiting.enter_context(
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", client.port))
                )
                connection.request("GET", f"{path}/head?revision=0&seconds=30")
            started = time.monotonic()
            assert client.send(f"{path}/classes", name="red")[0] == 200
            client.label(entry["id"], [0], "red")
            assert time.monotonic() - started < WHILE


# --- the bounds by themselves ---


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer /N with N bytes, once the whole body is there."""
    while (await receive()).get("more_body"):
        pass
    size = int(scope["path"][1:])
    headers = [(b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, size, 1 << 16):
        piece = bytes(min(1 << 16, size - start))
        await send({"type": "http.response.body", "body": piece, "more_body": start + len(piece) < size})


class Bounded(Running):
    """A server of `_hello` with narrow bounds, and its connections."""

    def __init__(self, port: int, server: uvicorn.Server) -> None:
        super().__init__(port)
        self._server = server

    @property
    def count(self) -> int:
        return len(self._server.server_state.connections)

    def connect(self, data: bytes) -> socket.socket:
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        raw.sendall(data)
        return raw


@contextlib.contextmanager
def bounded(*, most: int = 100, seconds: float = 0.4) -> Iterator[Bounded]:
    protocol: Any = partial(BoundedConnection, most=most, seconds=seconds)
    config = uvicorn.Config(_hello, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)  # of each connection: what the system buffers
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Bounded(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join()


def seconds_until_closed(raw: socket.socket, *, drip: bytes = b"") -> float:
    """Return how long the server keeps a connection on which `drip` comes again and again; what it says is read."""
    started = time.monotonic()
    raw.settimeout(0.05)
    while time.monotonic() - started < 5:
        try:
            if drip:
                raw.send(drip)
            if not raw.recv(1 << 16):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    raw.close()
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("begun", "drip"),
    [(b"", b""), (b"GET /1 HT", b""), (b"GET /1 HTTP/1.1\r\nA: ", b"x"), (b"GET /1 HTTP/1.1\r\n\r\n", b""),
     (b"GET /1 HTTP/1.1\r\n\r\nGET /1 HTTP/1.1\r\nA: ", b"x")],
)  # fmt: skip
def test_a_head_has_a_while_to_come(begun: bytes, drip: bytes) -> None:
    """However it comes: not at all, in part, byte by byte, after an answer."""
    with bounded() as server:
        assert 0.3 < seconds_until_closed(server.connect(begun), drip=drip) < 3
        assert server.count == 0


def test_an_answer_that_is_not_taken_is_given_up() -> None:
    """Large ones, of which the application waits for room, and small ones, the end of which is in a buffer by then."""
    with bounded(seconds=1.0) as server:
        taken = []
        for size in range(40_000, 400_000, 20_000):
            taken.append(raw := socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", server.port))
            raw.sendall(b"GET /%d HTTP/1.1\r\nConnection: close\r\n\r\n" % size)
        end = time.monotonic() + 10
        while server.count < 10:
            assert time.monotonic() < end
        end = time.monotonic() + 10
        while server.count:
            assert time.monotonic() < end
            time.sleep(0.02)
        for raw in taken:
            raw.close()


def test_an_answer_that_takes_longer_than_a_while_is_given() -> None:
    """Who takes some of it in time has the rest as well."""
    with bounded(seconds=1.0) as server:
        raw = server.connect(b"GET /30000000 HTTP/1.1\r\nConnection: close\r\n\r\n")
        size, started = 0, time.monotonic()
        while data := raw.recv(400_000):
            size += len(data)
            time.sleep(0.015)
        assert size > 30_000_000 and time.monotonic() - started > 1.0
        raw.close()


@pytest.mark.parametrize(
    "begun",
    [b"GET /1 HTTP/1.1\r\nA: ", b"GET /1", b"POST /1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;"],
)
def test_a_head_or_what_is_beside_a_body_has_a_largest_size(begun: bytes) -> None:
    with bounded(seconds=5) as server:
        raw = server.connect(begun)
        with contextlib.suppress(OSError):
            for _ in range(20):
                raw.sendall(b"1" * 10_000)
        assert seconds_until_closed(raw) < 3
        assert server.get("/1") == (200, b"\0")


def test_a_large_body_in_small_pieces_is_taken() -> None:
    with bounded() as server:
        body = iter([b"x" * 9] * 30_000)
        assert server.request("POST", "/1", body)[0] == 200


def test_one_connection_too_many_ends_the_one_that_kept_waiting_longest() -> None:
    """A request under way goes on; of those that keep waiting, those before a body go first, in their order."""
    with bounded(most=4, seconds=5) as server:
        body = server.connect(b"POST /1 HTTP/1.1\r\nContent-Length: 2\r\n\r\n1")
        first, second, third = (server.connect(b"GET /1 HT") for _ in range(3))
        while server.count < 4:
            time.sleep(0.01)
        assert server.get("/1")[0] == 200
        assert seconds_until_closed(first) < 1
        assert server.get("/1")[0] == 200
        body.sendall(b"2")
        assert b" 200 " in body.recv(1000)
        for raw in (second, third):
            raw.sendall(b"TP/1.1\r\n\r\n")
            assert b" 200 " in raw.recv(1000)
            raw.close()
        body.close()


def test_small_bodies_have_a_bound_together_and_time_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two bodies of four bytes under a bound of six the second is refused, the first is not; each is given back."""
    monkeypatch.setattr(limits, "_MOST_BYTES", 6)
    monkeypatch.setattr(limits, "_BODIES_AT_ONCE", 1)
    monkeypatch.setattr(limits, "_SECONDS", 0.2)
    monkeypatch.setattr(limits, "_LEAST_RATE", 10)
    statuses: list[int | None] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def post(pieces: list[tuple[float, bytes]]) -> None:
        async def receive() -> dict[str, Any]:
            seconds, body = pieces.pop(0)
            await asyncio.sleep(seconds)
            return {"type": "http.request", "body": body, "more_body": bool(pieces)}

        try:
            await limit({"type": "http", "path": "/"}, receive, send)
            statuses.append(200)
        except RefusedError as error:
            statuses.append(error.status)

    async def send(message: Any) -> None: ...

    async def both() -> None:
        await asyncio.gather(post([(0, b"1234"), (0.1, b"")]), post([(0.05, b"1234"), (0, b"")]))
        await post([(0.05, b"1234"), (0.3, b"56")])
        await post([(0.05, b"1"), (0.5, b"56")])
        await post([(0, b"1234567")])

    limit = BodyLimit(inner, is_file=lambda path: False)
    asyncio.run(both())
    assert statuses == [503, 200, 200, 408, 413]


def test_a_process_with_few_descriptors_answers_beyond_them(tmp_path: Path) -> None:
    """400 descriptors, 800 connections that send nothing, all at once: files have theirs, and so has the next."""
    few = ["bash", "-c", 'ulimit -n 400 && exec "$@"', "few"]
    with studio_process(tmp_path / "work", before=few) as (_, client):
        taken = [socket.create_connection(("127.0.0.1", client.port), timeout=10) for _ in range(800)]
        for _ in range(3):
            started = time.monotonic()
            assert client.request("PUT", "/api/images/mine/file?path=1.png", b"1")[0] == 200
            assert time.monotonic() - started < WHILE
        for raw in taken:
            raw.close()
