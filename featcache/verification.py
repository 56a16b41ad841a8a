"""`verify`: check every stored byte of a CACHE, a HEAD, a MODEL or a BUNDLE, whichever the path is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featcache.errors import CorruptError, FeatcacheError, InputError, MissingError
from featcache.system.objects import ObjectPath, place_of

Kind = Literal["cache", "head", "model", "bundle"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. `rows`: intact rows of a cache, intact files of anything else. `problems`: one line each.

    `signed_by`: fingerprint of the key whose signature of a bundle holds; None without one, or where none was checked.
    """

    path: str
    kind: Kind
    ok: bool
    rows: int
    problems: tuple[str, ...]
    signed_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "ok": self.ok,
            "rows": self.rows,
            "problems": list(self.problems),
            "signed_by": self.signed_by,
        }


def verify(
    path: str | os.PathLike[str] | ObjectPath, *, repair: bool = False, public_key: str | os.PathLike[str] | None = None
) -> Verification:
    """Return what a check of every byte stored at `path` finds.

    Parameters
    ----------
    path
        A CACHE (a directory or a URL), HEAD, MODEL or BUNDLE.
    repair
        Drop exactly the damaged rows of a cache, so that the next build makes them again; nothing else can be repaired.
    public_key
        The PEM file of the Ed25519 key that a bundle must be signed with.

    Returns
    -------
    Verification
        Whether all is well, what is intact, and a line for each problem.

    Raises
    ------
    MissingError
        Where `path` is none of these.
    InputError
        Where something else than a cache shall be repaired, or something else than a bundle has a public key.

    Examples
    --------
    >>> from featcache import verify
    >>> verify("bundle").ok
    True
    >>> with open("bundle/labels.txt", "a") as file:
    ...     _ = file.write("bird")
    >>> verify("bundle").problems
    ("'labels.txt' is not the file that was exported: its sha256 differs",)
    """
    place = place_of(path)
    kind = kind_of(place)
    if repair and kind != "cache":
        raise InputError(f"only a cache can be repaired, {str(path)!r} is a {kind}: make it again")
    if public_key is not None and kind != "bundle":
        raise InputError(f"only a bundle can be signed, {str(path)!r} is a {kind}: leave the public key out")
    signed_by = None
    if kind == "cache" or isinstance(place, ObjectPath):
        rows, problems = _check_cache(place, repair=repair)
    elif kind == "bundle":
        from featcache.bundle.manifest import verify_bundle
        from featcache.bundle.signature import check_signature, load_public_key

        key = None if public_key is None else load_public_key(public_key)
        rows, problems = verify_bundle(place, public_key=key)
        signed_by = check_signature(place, key)[0]
    elif kind == "model":
        from featcache.model.directory import verify_model

        problems = verify_model(place)
        rows = sum(1 for file in place.rglob("*") if file.is_file()) if not problems else 0
    else:
        rows, problems = _check_head(place)
    return Verification(str(path), kind, not problems, rows, tuple(problems), signed_by)


def kind_of(place: Path | ObjectPath) -> Kind:
    """Return what is at `place`; `MissingError` where it is no artefact. In object storage there are caches only."""
    from featcache.bundle.manifest import may_be_bundle
    from featcache.cache.manifest import is_cache

    if isinstance(place, ObjectPath):
        if is_cache(place):
            return "cache"
        place.children()  # a bucket that is not there is named
        raise MissingError(f"PATH must be a cache where it is a URL, {str(place)!r} is none: check it")
    if (place / "model.json").is_file():
        return "model"
    if (place / "head.json").is_file():
        return "head"
    if is_cache(place):
        return "cache"
    if may_be_bundle(place):
        return "bundle"
    raise MissingError(
        f"PATH must be a cache, a head, a model or a bundle; {str(place)!r} is none of them: check the path, or see "
        "'featcache --help' for the verbs that make one"
    )


def _check_cache(place: Path | ObjectPath, *, repair: bool) -> tuple[int, tuple[str, ...]]:
    from featcache.cache import open_cache
    from featcache.cache.manifest import check_manifest, read_manifest

    problems: tuple[str, ...] = ()
    if repair:
        problems = tuple(check_manifest(place, repair=True))  # without it the rest cannot be opened
    try:
        read_manifest(place)
    except CorruptError as error:
        return 0, (str(error),)
    with open_cache(place) as cache:
        report = cache.verify(repair=repair)
    return report.rows, problems + report.problems


def _check_head(place: Path) -> tuple[int, tuple[str, ...]]:
    from featcache.heads import load_head

    try:
        load_head(place)
    except FeatcacheError as error:
        return 0, (str(error),)
    return 2, ()
