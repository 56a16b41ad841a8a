"""Files of an artefact, which may come from a stranger: plain files of its own directory, of the bytes that it states.

Every verb that opens a HEAD, a MODEL or a BUNDLE comes through here, so that no link leads elsewhere, no pipe waits for
ever, and no changed file is loaded as if it were the one that was made.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from featcache.errors import CorruptError, MissingError


def member_path(folder: Path, name: str, *, renew: str, most_bytes: int | None = None) -> Path:
    """Return the path of the file `name` of the artefact in `folder`.

    Parameters
    ----------
    folder
        The artefact's directory; it may be reached by a link itself.
    name
        A relative path below it. It may be a link to another file of the directory.
    renew
        Advice where the file is not as it must be: ``export the bundle again``.
    most_bytes
        How large it may be; None: as large as it is.

    Raises
    ------
    MissingError
        Where there is none.
    CorruptError
        Where it is no plain file, a link that leaves the directory, or too large.
    """
    path = folder / name
    named = repr(str(path))
    try:
        if not path.exists() and not path.is_symlink():
            raise MissingError(f"{str(folder)!r} must hold {name}, it has none; {renew}")
        if not path.is_file():
            raise CorruptError(f"{named} must be a plain file, it is none; {renew}")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CorruptError(f"{named} must be a file of its directory, it is a link that leaves it; {renew}")
        size = path.stat().st_size
    except OSError as error:
        if isinstance(error, (MissingError, CorruptError)):
            raise
        raise CorruptError(f"{named} must be readable, got: {error.strerror}; {renew}") from error
    if most_bytes is not None and size > most_bytes:
        raise CorruptError(f"{named} must be at most {most_bytes} bytes, it is {size}; {renew}")
    return path


def read_member(folder: Path, name: str, *, renew: str, sha256: object = None, most_bytes: int | None = None) -> bytes:
    """Return the bytes of the file `name` of the artefact in `folder`.

    `sha256`: what their digest (hexadecimal) must be; None: any. Raises as `member_path`, and `CorruptError` for
    another digest and for what cannot be read.
    """
    path = member_path(folder, name, renew=renew, most_bytes=most_bytes)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{str(path)!r} must be readable, got: {error.strerror}; {renew}") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise _changed(path, renew)
    return data


def digest_file(path: Path) -> str:
    """Return the sha256 (hexadecimal) of the bytes of the file at `path`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_member(folder: Path, name: str, *, renew: str, sha256: object) -> Path:
    """Return the path of the file `name` of the artefact in `folder`, its digest (hexadecimal) being `sha256`.

    For files that are opened by name. Raises as `read_member`.
    """
    path = member_path(folder, name, renew=renew)
    try:
        found = digest_file(path)
    except OSError as error:
        raise CorruptError(f"{str(path)!r} must be readable, got: {error.strerror}; {renew}") from error
    if found != sha256:
        raise _changed(path, renew)
    return path


def _changed(path: Path, renew: str) -> CorruptError:
    return CorruptError(
        f"{str(path)!r} must have the sha256 stated for it, it has other bytes: restore the file, or {renew}"
    )
