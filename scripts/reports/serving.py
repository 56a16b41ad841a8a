"""A server that must not start: what it is given cannot be served."""

from __future__ import annotations

import socket
from pathlib import Path

from reports.models import Commands, _refused, _with
from reports.report import SMALL, Report, draw_classes

_taken: dict[Path, socket.socket] = {}


def _damaged(folder: Path) -> Commands:
    place = _with(folder, "bundle") / "bundle" / "model.onnx"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    return [["serve", "bundle", "--port", "0"]]


def _model(folder: Path) -> Commands:
    _with(folder, "model")
    return [["serve", "pets=model", "--port", "0"]]


def _port(folder: Path) -> Commands:
    _with(folder, "bundle")
    _taken[folder] = socket.create_server(("127.0.0.1", 0))
    return [["serve", "bundle", "--port", _taken[folder].getsockname()[1]]]


def _twice(folder: Path) -> Commands:
    _with(folder, "bundle")
    return [["serve", "bundle", "bundle=bundle", "--port", "0"]]


def _other_cache(folder: Path) -> Commands:
    _with(folder, "bundle")
    draw_classes(folder / "photos", "cat", "dog", each=3)
    return [["build", "photos", "--cache", "c", *SMALL], ["serve", "bundle", "--cache", "c", "--port", "0"]]


def _studio_on_a_file(folder: Path) -> Commands:
    (folder / "work").write_text("a file")
    return [["studio", "work", "--port", "0"]]


def _studio_port(folder: Path) -> Commands:
    _taken[folder] = socket.create_server(("127.0.0.1", 0))
    return [["studio", "work", "--port", _taken[folder].getsockname()[1]]]


def _studio_other_database(folder: Path) -> Commands:
    (folder / "work").mkdir()
    (folder / "work" / "studio.sqlite").write_bytes(b"not a database" * 100)
    return [["studio", "work", "--port", "0"]]


REPORTS = (
    Report(
        "studio-workspace-is-a-file",
        "the labelling tool dies with a traceback when it is given a file",
        "refused in one line that says what a workspace is",
        _studio_on_a_file,
        _refused("WORKSPACE must be a folder"),
    ),
    Report(
        "studio-port-taken",
        "the page of another program is shown, as the port was taken and nobody said so",
        "refused, naming the address and how any free port is taken",
        _studio_port,
        _refused("--port 0"),
    ),
    Report(
        "studio-damaged-database",
        "a damaged project file is silently begun anew, and all labels are gone",
        "refused, and the file is left as it is",
        _studio_other_database,
        _refused("must be a studio's database"),
    ),
    Report(
        "serve-damaged-bundle",
        "one flipped bit in a deployed model is served as if nothing had happened",
        "refused before it listens, naming the file",
        _damaged,
        _refused("'model.onnx' is not the file that was exported", "export the bundle again"),
    ),
    Report(
        "serve-model-instead-of-bundle",
        "the server dies with a traceback when it is given a model that was never exported",
        "refused in one line that says how to make a bundle",
        _model,
        _refused("must be a bundle", "featcache export"),
    ),
    Report(
        "serve-port-taken",
        "Errno 98 Address already in use, after a minute of loading",
        "refused in one line before anything is loaded, with the way to any free port",
        _port,
        _refused("cannot be had", "--port 0"),
    ),
    Report(
        "serve-same-name-twice",
        "two models of one name: one of them silently wins",
        "refused, naming both paths and how to name them apart",
        _twice,
        _refused("a name and version of its own", "NAME/VERSION=BUNDLE"),
    ),
    Report(
        "serve-cache-of-another-model",
        "answers come from stored features of another network",
        "refused: the cache must be the one that the bundle was made from",
        _other_cache,
        _refused("must be the one that", "was made from"),
    ),
)
