"""Every JSON document that is read: whatever stands in the file, one line says what is wrong and what to do."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_models import saved_model
from fake import fake_recipe

import featcache
from featcache.bundle.signature import check_signature
from featcache.cache.cache import open_cache
from featcache.cache.creation import create_cache
from featcache.cache.manifest import read_manifest
from featcache.datasets.samples import load_samples
from featcache.distillation.state import read_notes
from featcache.engines._network_cache import load_entry
from featcache.errors import CorruptError, FormatError, MissingError
from featcache.heads.io import load_head
from featcache.model.directory import load_model
from featcache.model.golden import Golden
from featcache.pipeline.page import write_report
from featcache.runtime.bundle import open_bundle
from featcache.store._record import Record
from featcache.system.json import (
    MOST_NESTED,
    DocumentKind,
    canonical_json,
    has_checksum,
    parse_json,
    read_document,
    with_checksum,
)

HOSTILE = {
    "nothing": b"",
    "cut short": b'{"format": "feat',
    "200,000 brackets": b"[" * 200_000,
    "200,000 objects": b'{"a":' * 200_000,
    "closed brackets": b"[" * 50_000 + b"]" * 50_000,
    "a whole number of 5,001 digits": b'{"version": ' + b"1" * 5001 + b"}",
    "a number beyond floats": b'{"version": 1e999}',
    "NaN": b'{"version": NaN}',
    "Infinity": b'{"version": -Infinity}',
    "a name twice": b'{"format": "featcache.head", "format": "featcache.head"}',
    "a list": b"[]",
    "a text": b'"featcache.head"',
    "null": b"null",
    "Latin-1": '{"kind": "Öl"}'.encode("latin-1"),
    "UTF-16": '{"kind": "linear"}'.encode("utf-16"),
    "a byte-order mark": b'\xef\xbb\xbf{"kind": "linear"}',
    "half a surrogate pair": b'{"crc32c": 1, "kind": "\\ud800"}',
}


def read_plain(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    """Return what writes hostile text into the file `name` of a folder and reads the folder."""

    def write_and_read(folder: Path, text: bytes) -> object:
        (folder / name).write_bytes(text)
        return read(folder)

    return write_and_read


def read_preprocessing(folder: Path, text: bytes) -> object:
    manifest = {"format": "featcache.bundle", "version": 1, "name": "m", "formats": {}, "lineage": {}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "preprocess.json").write_bytes(text)
    return open_bundle(folder)


def read_requests(folder: Path, text: bytes) -> object:
    with create_cache(folder / "cache", fake_recipe(), shapes={"features": (48,)}, store="zarr", request={}) as cache:
        (folder / "cache" / "requests.json").write_bytes(text)
        assert cache.known_requests() == []  # a memo: the build goes on without it
        (problem,) = cache.verify().problems
    raise CorruptError(problem)


def read_quantization(folder: Path, text: bytes) -> object:
    place = saved_model(folder / "model", golden=False)
    (place / "quant.json").write_bytes(text)
    document = json.loads((place / "model.json").read_text())
    document["sha256"]["quant.json"] = hashlib.sha256(text).hexdigest()
    (place / "model.json").write_text(json.dumps(document))
    return load_model(place)


def read_sample_list(folder: Path, text: bytes) -> object:
    header = json.dumps({"__metadata__": {"featcache": text.decode("latin-1")}}).encode()
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return load_samples(folder / "a.safetensors")


def read_zarr_record(folder: Path, text: bytes) -> object:
    with create_cache(folder / "cache", fake_recipe(), shapes={"features": (48,)}, store="zarr", request={}):
        pass
    (group,) = (folder / "cache" / "store").glob("*.zarr/zarr.json")
    group.write_bytes(text)
    with open_cache(folder / "cache") as cache, cache.reader():
        return cache


DOCUMENTS: dict[str, Callable[[Path, bytes], object]] = {
    "head.json": read_plain("head.json", load_head),
    "model.json": read_plain("model.json", load_model),
    "quant.json": read_quantization,
    "golden.json": read_plain("golden.json", Golden.load),
    "manifest.json of a bundle": read_plain("manifest.json", open_bundle),
    "preprocess.json": read_preprocessing,
    "manifest.json of a cache": read_plain("manifest.json", read_manifest),
    "requests.json": read_requests,
    "a sample list": read_sample_list,
    "zarr.json of a store": read_zarr_record,
    "the commit record": lambda folder, text: Record.from_text(text, place=str(folder)),
    "progress.json": read_plain("progress.json", read_notes),
    "report.json": read_plain("report.json", lambda folder: write_report(folder / "report.json")),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_document_of_hostile_text_is_corrupt_in_one_line(name: str, tmp_path: Path) -> None:
    """Whatever stands in any of the documents, its reader raises `CorruptError` in one short line, and nothing else."""
    for number, (what, text) in enumerate(HOSTILE.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(CorruptError) as caught:
            DOCUMENTS[name](folder, text)
            pytest.fail(f"{what} was read")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600, what


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_notes_of_hostile_text_count_as_absent(text: bytes, tmp_path: Path) -> None:
    """A compiled network's header and a bundle's signature are not what stops a program: they are as if not there."""
    (tmp_path / "a.network").write_bytes(len(text).to_bytes(8, "little") + text)
    assert load_entry(tmp_path / "a.network") is None
    (tmp_path / "signature.json").write_bytes(text)
    pytest.importorskip("cryptography", reason="signatures need it")
    signer, problems = check_signature(tmp_path, None)
    assert signer is None and len(problems) == 1


KIND = DocumentKind(
    "a head", make="make one with 'featcache train'", renew="train it again", format="featcache.head", versions=(1, 2),
    keys=("kind",), checksum=True, unchecked=(1,),
)  # fmt: skip
GOOD: dict[str, Any] = {"format": "featcache.head", "version": 2, "kind": "linear"}


def written(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "head.json").write_text(json.dumps(values))
    return folder / "head.json"


def test_document_of_its_kind_is_returned(tmp_path: Path) -> None:
    """Each version that is read, with its checksum where it must have one."""
    assert read_document(written(tmp_path, with_checksum(GOOD)), KIND) == with_checksum(GOOD)
    assert read_document(written(tmp_path, {**GOOD, "version": 1}), KIND)["kind"] == "linear"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({**GOOD, "format": "other"}, FormatError, "must have the format 'featcache.head'.*featcache train"),
        ({**GOOD, "version": 3}, FormatError, "must be of version 2, got 3: use the featcache that wrote it"),
        ({**GOOD, "version": True}, FormatError, "must be of version 2, got True"),
        ({**GOOD, "version": [2]}, FormatError, r"must be of version 2, got \[2\]"),
        (GOOD, CorruptError, "must have a checksum, it has none; train it again"),
        ({**with_checksum(GOOD), "kind": "knn"}, CorruptError, "must match its checksum, it does not; train it again"),
        ({**GOOD, "version": 1, "crc32c": 5}, CorruptError, "must match its checksum"),
        (with_checksum({"format": "featcache.head", "version": 2}), CorruptError, r"must have the keys \['kind'\]"),
    ],
)
def test_document_of_another_kind_is_refused(
    values: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """The file is named, what must hold, what came, and what to do."""
    path = written(tmp_path, values)
    with pytest.raises(error, match=message) as caught:
        read_document(path, KIND)
    assert str(path) in str(caught.value)


def test_document_that_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    """Also where the folder above is none."""
    for path in (tmp_path / "head.json", tmp_path / "none" / "head.json"):
        with pytest.raises(MissingError, match=r"a head must be a directory with head\.json; .* make one with"):
            read_document(path, KIND)
    (tmp_path / "file").touch()
    with pytest.raises(MissingError, match="a head must be a directory"):
        read_document(tmp_path / "file" / "head.json", KIND)


def test_document_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    """A directory, and a pipe, which would wait for ever."""
    (tmp_path / "head.json").mkdir()
    with pytest.raises(CorruptError, match="must be a plain file"):
        read_document(tmp_path / "head.json", KIND)
    (tmp_path / "head.json").rmdir()
    os.mkfifo(tmp_path / "head.json")
    with pytest.raises(CorruptError, match="must be a plain file"):
        read_document(tmp_path / "head.json", KIND)


def test_link_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    """A link to a file beside it is followed."""
    outside, folder = tmp_path / "outside", tmp_path / "head"
    outside.mkdir()
    folder.mkdir()
    written(outside, with_checksum(GOOD))
    (folder / "head.json").symlink_to(outside / "head.json")
    with pytest.raises(CorruptError, match="a link that leaves it"):
        read_document(folder / "head.json", KIND)
    (folder / "head.json").unlink()
    (folder / "other.json").write_bytes((outside / "head.json").read_bytes())
    (folder / "head.json").symlink_to("other.json")
    assert read_document(folder / "head.json", KIND)["kind"] == "linear"


def test_brackets_are_counted_to_the_limit() -> None:
    """As many as are allowed are read, one more is not; brackets in texts do not count."""
    assert parse_json("[" * MOST_NESTED + "]" * MOST_NESTED)
    assert parse_json(json.dumps({"a": "[" * 1000})) == {"a": "[" * 1000}
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        parse_json("[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1))


def test_what_is_written_is_read_again() -> None:
    """Numbers to the last digit, texts of any script, and the checksum with them."""
    values = {"a": [0.1, -1e-300, 2**63, True, None], "Öl": {"„x“": "\U0001f600"}, "f": float(np.float32(0.1))}
    assert parse_json(canonical_json(values)) == values
    assert has_checksum(parse_json(canonical_json(with_checksum(values)).encode()))
    assert not has_checksum({"crc32c": 5, "a": "\ud800"})


# Files that read JSON of a child process, of the command line, of their own making, or where this package is not.
OTHERWISE = {
    "backbone/checkpoint.py", "cli/text.py", "distillation/student.py", "extract/request.py", "formats/memory.py",
    "formats/tools/program.py", "formats/web/browser.py", "formats/drivers/protocol.py", "system/json.py",
    "testing/heads.py",
}  # fmt: skip


def test_no_other_file_reads_json_its_own_way() -> None:
    """A stored document is read by `read_document`, a stored note by `parse_json`."""
    package = Path(featcache.__file__).parent
    readers = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.loads", "json.load"):
                readers.add(file.relative_to(package).as_posix())
    assert readers == OTHERWISE
