"""Zipped and signed bundles: what is unpacked stays inside and whole, and a rewritten manifest is noticed."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import pytest
from export_models import saved_model
from typer.testing import CliRunner

from featcache.bundle.archive import pack, unpack
from featcache.bundle.exporting import export
from featcache.bundle.manifest import manifest_bytes
from featcache.cli import app
from featcache.errors import CorruptError, DependencyError, ExistsError, InputError, MissingError, VerificationError
from featcache.system.members import digest_file
from featcache.verification import verify

pytest.importorskip("cryptography")


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a key pair as openssl does and return (private, public)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    for name in ("ours", "theirs"):
        make_keys(folder, name)
    export(saved_model(folder / "model"), out=folder / "bundle", sign=folder / "ours.pem")
    return folder


@pytest.fixture
def bundle(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "bundle", tmp_path / "bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rewrite(bundle: Path, name: str = "labels.txt", data: bytes = b"dog\ncat\n") -> bytes:
    """Change a file and make the manifest fit, as somebody who knows the format would; return the manifest."""
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": digest_file(bundle / name), "bytes": len(data)}
    written = manifest_bytes(manifest)
    (bundle / "manifest.json").write_bytes(written)
    return written


# --- signatures -----------------------------------------------------------------------------------------------------


def test_a_signed_bundle_verifies_with_its_key_and_without(place: Path, bundle: Path) -> None:
    found = verify(bundle, public_key=place / "ours.public.pem")
    assert (found.ok, found.signed_by) == (True, verify(bundle).signed_by)
    assert found.signed_by is not None
    assert len(found.signed_by) == 16
    printed = CliRunner().invoke(app, ["verify", str(bundle), "--public-key", str(place / "ours.public.pem"), "--json"])
    assert json.loads(printed.stdout)["signed_by"] == found.signed_by


def test_a_rewritten_manifest_is_noticed_by_the_signature_alone(place: Path, bundle: Path) -> None:
    rewrite(bundle)
    assert [problem for problem in verify(bundle).problems if "rewritten" in problem]
    (bundle / "signature.json").unlink()
    assert verify(bundle).ok, "without its signature, nothing tells the rewritten manifest from another export"
    assert "not signed" in verify(bundle, public_key=place / "ours.public.pem").problems[0]


def test_a_manifest_signed_anew_by_somebody_else_is_noticed_with_the_key(place: Path, bundle: Path) -> None:
    from featcache.bundle.signature import load_private_key, sign

    manifest = rewrite(bundle)
    (bundle / "signature.json").write_bytes(sign(manifest, load_private_key(place / "theirs.pem")))
    assert verify(bundle).ok, "the key beside the signature proves nothing, and nothing is claimed of it"
    assert "another key" in verify(bundle, public_key=place / "ours.public.pem").problems[0]
    assert verify(bundle, public_key=place / "theirs.public.pem").ok


def test_every_changed_byte_of_a_signature_is_noticed(bundle: Path) -> None:
    path = bundle / "signature.json"
    before = path.read_bytes()
    for position in range(len(before)):
        changed = bytearray(before)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert not verify(bundle).ok, position
    path.write_bytes(before[:-1])
    assert not verify(bundle).ok


def test_two_signed_exports_are_the_same_bytes(place: Path, tmp_path: Path) -> None:
    export(place / "model", out=tmp_path / "again", sign=place / "ours.pem")
    first, second = contents(place / "bundle"), contents(tmp_path / "again")
    assert [name for name in first if first[name] != second[name]] == ["report.json"]
    assert first.keys() == second.keys()


def test_what_is_no_key_is_said_to_be_none_and_nothing_is_written(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Ed25519 private key.*openssl genpkey"):
        export(place / "model", out=tmp_path / "bundle", sign=place / "ours.public.pem")
    with pytest.raises(MissingError, match="key"):
        export(place / "model", out=tmp_path / "bundle", sign=tmp_path / "none.pem")
    with pytest.raises(InputError, match="public key"):
        verify(place / "bundle", public_key=place / "ours.pem")
    with pytest.raises(InputError, match="only a bundle"):
        verify(place / "model", public_key=place / "ours.public.pem")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_a_signature_is_neither_claimed_nor_fatal(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cryptography" else find(name))
    found = verify(place / "bundle")
    assert (found.ok, found.signed_by) == (True, None)
    with pytest.raises(DependencyError, match=r"featcache\[sign\]"):
        verify(place / "bundle", public_key=place / "ours.public.pem")


# --- zip files ------------------------------------------------------------------------------------------------------


def test_pack_and_unpack_give_the_bundle_back_the_same_bytes_each_time(place: Path, tmp_path: Path) -> None:
    first, second = pack(place / "bundle", tmp_path / "a.zip"), pack(place / "bundle", tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    out = unpack(first, tmp_path / "out", public_key=place / "ours.public.pem")
    assert contents(out) == contents(place / "bundle")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.zip", "b.zip", "out"]
    printed = CliRunner().invoke(app, ["pack", str(place / "bundle"), "--out", str(tmp_path / "c.zip"), "--json"])
    assert json.loads(printed.stdout)["bytes"] == first.stat().st_size
    assert CliRunner().invoke(app, ["unpack", str(first), "--out", str(tmp_path / "cli")]).exit_code == 0
    assert contents(tmp_path / "cli") == contents(place / "bundle")


def test_pack_keeps_what_is_there_and_refuses_a_changed_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.zip").write_bytes(b"kept")
    with pytest.raises(ExistsError, match="--overwrite"):
        pack(bundle, tmp_path / "kept.zip")
    (bundle / "labels.txt").write_bytes(b"dog\ncat\n")
    with pytest.raises(VerificationError, match="unchanged bundle"):
        pack(bundle, tmp_path / "kept.zip", overwrite=True)
    assert (tmp_path / "kept.zip").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "kept.zip"]


def archive_of(folder: Path, name: str, data: bytes, *, mode: int = 0o100644, kind: int = zipfile.ZIP_STORED) -> Path:
    path = folder / "hostile.zip"
    with zipfile.ZipFile(path, "a") as file:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        file.writestr(entry, data, kind)
    return path


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:/evil", "./evil", "a//evil"])
def test_no_entry_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="plain relative path"):
        unpack(archive_of(tmp_path, name, b"evil"), tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil*"))
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o140644])
def test_no_links_pipes_devices_or_sockets(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match="only files"):
        unpack(archive_of(tmp_path, "link", b"/etc/passwd", mode=mode), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_below_a_link_cannot_be_written_through_it(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    archive_of(tmp_path, "link", b"../outside", mode=0o120777)
    with pytest.raises(InputError):
        unpack(archive_of(tmp_path, "link/evil", b"evil"), tmp_path / "out")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = archive_of(tmp_path, "zeros", bytes(50_000_000), kind=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(InputError, match="at most 100 times"):
        unpack(bomb, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_is_larger_than_it_states_is_cut_off(tmp_path: Path) -> None:
    path = archive_of(tmp_path, "zeros", bytes(5_000_000), kind=zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    assert data.count(struct.pack("<L", 5_000_000)) == 2
    path.write_bytes(data.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 10)))
    with pytest.raises(CorruptError):
        unpack(path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["labels.txt", "LABELS.txt"])
def test_no_name_twice(tmp_path: Path, second: str) -> None:
    archive_of(tmp_path, "labels.txt", b"a")
    with pytest.raises(InputError, match="twice"):
        unpack(archive_of(tmp_path, second, b"b"), tmp_path / "out")


def test_more_files_than_a_bundle_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for number in range(10_001):
            file.writestr(f"{number}", b"")
    with pytest.raises(InputError, match="10001"):
        unpack(tmp_path / "many.zip", tmp_path / "out")


def test_broken_archives_are_one_line(place: Path, tmp_path: Path) -> None:
    whole = pack(place / "bundle", tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed.zip").write_bytes(whole.replace(b"cat\ndog\n", b"dog\ncat\n"))
    for name in ("cut", "changed"):
        with pytest.raises(CorruptError):
            unpack(tmp_path / f"{name}.zip", tmp_path / "out")
    with pytest.raises(MissingError):
        unpack(tmp_path / "none.zip", tmp_path / "out")
    deflated = bytearray(archive_of(tmp_path, "text", b"abc" * 400, kind=zipfile.ZIP_DEFLATED).read_bytes())
    deflated[40] ^= 0xFF
    (tmp_path / "deflated.zip").write_bytes(deflated)
    with pytest.raises(CorruptError):
        unpack(tmp_path / "deflated.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packed_bundle_with_another_signature_leaves_nothing(place: Path, tmp_path: Path) -> None:
    archive = pack(place / "bundle", tmp_path / "bundle.zip")
    with pytest.raises(VerificationError, match="another key"):
        unpack(archive, tmp_path / "out", public_key=place / "theirs.public.pem")
    assert not (tmp_path / "out").exists()


def test_opening_a_zip_loads_no_torch(place: Path, tmp_path: Path) -> None:
    import subprocess

    archive = pack(place / "bundle", tmp_path / "bundle.zip")
    code = f"import sys; from featcache.bundle.archive import unpack; unpack({str(archive)!r}, {str(tmp_path / 'out')!r}); print('torch' in sys.modules)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
