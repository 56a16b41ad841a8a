"""An Ed25519 signature of a bundle's manifest, and with it of every file the manifest names (RFC 8032).

A manifest rewritten to match changed files is told from the exported one by this alone, and only where the reader has
the public key from somewhere else than the bundle. Keys are PEM files, as ``openssl genpkey -algorithm ed25519`` and
``openssl pkey -pubout`` write them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import DependencyError, InputError, MissingError
from featcache.runtime.bundle import MANIFEST_FILE, SIGNATURE_FILE
from featcache.system.json import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ALGORITHM = "ed25519"
_NEEDS = "pip install 'featcache[sign]'"


def sign(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the bytes of ``signature.json`` for the bytes of a manifest; equal inputs, equal bytes."""
    return _document(key.public_key().public_bytes_raw(), key.sign(manifest))


def load_private_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """Return the unencrypted Ed25519 private key in the PEM file at `path`; raises as `load_public_key`."""
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def load_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Return the Ed25519 public key in the PEM file at `path`.

    Raises `MissingError` where there is none, `InputError` for another kind of file, `DependencyError` without the
    package `cryptography`.
    """
    _require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key


def check_signature(place: Path, trusted: Ed25519PublicKey | None) -> tuple[str | None, tuple[str, ...]]:
    """Return the fingerprint of the key that signed the bundle at `place`, and one line per problem.

    `trusted`: the key it must be signed with. Without it a signature is held against the key that stands beside it,
    which whoever rewrites both can make fit; None is returned for a bundle without one, and where `cryptography` is
    not installed to check it.
    """
    path = place / SIGNATURE_FILE
    if not path.is_file():
        return None, () if trusted is None else (f"the bundle is not signed: it has no {SIGNATURE_FILE}",)
    if importlib.util.find_spec("cryptography") is None:
        return None, ()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = path.read_bytes()
    try:
        document = parse_json(data)
        public, signature = (base64.b64decode(document[name], validate=True) for name in ("public_key", "signature"))
        key = Ed25519PublicKey.from_public_bytes(public)
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None, (f"{SIGNATURE_FILE} is not as it was exported: it holds no Ed25519 signature",)
    if data != _document(public, signature):
        return None, (f"{SIGNATURE_FILE} is not as it was exported: it has another form",)
    if trusted is not None and trusted.public_bytes_raw() != public:
        stated = f"{fingerprint(public)}, not with {fingerprint(trusted.public_bytes_raw())}"
        return None, (f"the bundle is signed with another key than the one given: with {stated}",)
    try:
        key.verify(signature, (place / MANIFEST_FILE).read_bytes())
    except InvalidSignature:
        return None, (f"{MANIFEST_FILE} is not the one that was signed: it, or the signature, was rewritten",)
    return fingerprint(public), ()


def fingerprint(public: bytes) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of a public key's 32 bytes."""
    return hashlib.sha256(public).hexdigest()[:16]


def _document(public: bytes, signature: bytes) -> bytes:
    values: dict[str, Any] = {
        "algorithm": _ALGORITHM,
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(signature).decode(),
        "signs": MANIFEST_FILE,
    }
    return (json.dumps(values, indent=1) + "\n").encode()


def _require() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise DependencyError(f"signatures need the package cryptography, which is not installed: {_NEEDS}")


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MissingError(f"a key must be a readable PEM file, {os.fspath(path)!r}: {error.strerror}") from error


def _no_key(path: str | os.PathLike[str], kind: str) -> InputError:
    return InputError(
        f"{os.fspath(path)!r} must be the PEM file of an unencrypted Ed25519 {kind} key: make keys with 'openssl "
        "genpkey -algorithm ed25519 -out key.pem' and 'openssl pkey -in key.pem -pubout -out public.pem'"
    )
