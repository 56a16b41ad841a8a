"""`featcache serve` as a process: its one line, its log, how it stops, and that no torch is in it."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import refusal
from serving import Running

COMMAND = [sys.executable, "-c", "from featcache.cli import main; main()", "serve"]
NO_TORCH = """
import json, sys, threading, urllib.request
from featcache.cli import main
import featcache.serve.server as server

def ask(started):
    with open(sys.argv[-1], "rb") as file:
        request = urllib.request.Request(started.url + "/models/pets/classify", data=file.read())
    print(json.load(urllib.request.urlopen(request))[0]["label"])
    started.stop()

server.serve([sys.argv[1]], port=0, ready=lambda started: threading.Thread(target=ask, args=(started,)).start())
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("torch", "timm")))
"""


@contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    """Give a serving process and its client; what is still running after the block is killed."""
    started = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        line = json.loads(started.stdout.readline())
        assert line["models"] == ["pets"]
        yield started, Running(int(line["url"].rpartition(":")[2]))
    finally:
        started.kill()
        started.communicate()


def test_no_torch_is_imported(pets: Path, photos: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_TORCH, str(pets), str(photos / "cat" / "00.jpg")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    label, modules = done.stdout.splitlines()
    assert label in ("cat", "dog")
    assert modules == "[]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_under_way(pets: Path, photos: Path, number: int) -> None:
    """Half a body has come when the signal does: it is answered, nobody else is let in, the exit status is 0."""
    data = (photos / "cat" / "00.jpg").read_bytes()
    with process(pets) as (started, client):
        connection = socket.create_connection(("127.0.0.1", client.port), timeout=20)
        head = f"POST /models/pets/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:100])
        time.sleep(0.3)
        started.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(OSError):
            client.get("/v2/health/ready")
        connection.sendall(data[100:])
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert json.loads(answer.read())[0]["label"] in ("cat", "dog")
        connection.close()
        output, log = started.communicate(timeout=30)
        assert (started.returncode, output) == (0, "")
        lines = [json.loads(line) for line in log.splitlines()]
        assert [line["event"] for line in lines] == ["loaded", "request", "stopped"]
        assert (lines[1]["status"], lines[1]["model"], lines[1]["path"]) == (200, "pets", "/models/pets/classify")


def test_a_log_line_is_one_line_whatever_was_asked(pets: Path) -> None:
    with process(pets) as (started, client):
        client.get("/a%0a%1b%5b31mb%e2%80%ae%ff")
        started.terminate()
        log = started.communicate(timeout=30)[1]
        (line,) = [json.loads(line) for line in log.splitlines() if '"request"' in line]
        assert line["path"].startswith("/a\n\x1b[31mb\u202e")
        assert log.isascii()


def test_what_cannot_be_served_is_one_line(pets: Path, tmp_path: Path) -> None:
    assert "must be a bundle or a folder of some" in refusal("serve", tmp_path)
    assert "max_batch must be above 0" in refusal("serve", pets, "--max-batch", 0)
    assert "format must be one of this bundle's onnx" in refusal("serve", pets, "--format", "tflite", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be had" in refusal("serve", pets, "--port", port)
