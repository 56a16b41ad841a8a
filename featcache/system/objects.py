"""Places in object storage, named by URL, as `pathlib.Path` names places on a disk.

`place_of` gives a `Path` for a path and an `ObjectPath` for ``s3://``, ``gs://``, ``az://``, ``https://``. Requests go
through obstore (the extra ``objects``), which repeats what a storage answers with 5xx or 429 after growing pauses.
Credentials are the environment's own (``AWS_ACCESS_KEY_ID``, ``GOOGLE_APPLICATION_CREDENTIALS``,
``AZURE_STORAGE_ACCOUNT_NAME``, …); they are read by obstore at each start and kept nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast

from featcache.errors import AccessError, DependencyError, ExistsError, InputError, MissingError, StorageError

SCHEMES = ("s3", "gs", "az", "http", "https")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)/*(.*)", re.DOTALL)
_REASONS = [
    re.compile(r"<Code>([^<]*)</Code>"),
    re.compile(r"status code: (\d+[^:]*)"),
    re.compile(r'message: "([^"]*)"'),
]
_OTHER_REGION = (
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraint",
    "redirect without LOCATION",
)
_DENIED = re.compile(r"<Code>AccessDenied</Code>|status code: 40[13]")
_WITHOUT_REASON = re.compile(r"status code: 400")
_LONGEST_REASON = 200
_LARGEST_PUT = 64 << 20  # in one request; larger objects are put in parts
_MOST_REMOVED = 1000  # in one request, where the storage takes several
_SECRETS = re.compile(r"(?<=://)[^/]*@|\?.*", re.DOTALL)

# What a storage answers with 5xx or 429, or not at all, is asked for again after pauses that grow at random. A storage
# that throttles is waited for; one that is gone ends in one line after 15 to 40 s. obstore's own limit is 180 s.
RETRIES: dict[str, Any] = {
    "max_retries": 12,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"base": 3, "init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5)},
}


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """What a storage says of an object: `size` in bytes, `modified_ns` since 1970, `etag`, which names its content."""

    size: int
    modified_ns: int
    etag: str


def is_url(place: object) -> bool:
    """Return whether `place` names something by ``SCHEME://``."""
    return isinstance(place, str) and _URL.fullmatch(place) is not None


def without_secrets(url: str) -> str:
    """Return `url` without what may be a secret: the name and password before its host, and its query."""
    return _SECRETS.sub("…", url)


def place_of(place: str | os.PathLike[str] | ObjectPath) -> Path | ObjectPath:
    """Return where `place` is: an `ObjectPath` for a URL, else a `Path`; `InputError` for a scheme not known."""
    if isinstance(place, ObjectPath):
        return place
    return ObjectPath(place) if isinstance(place, str) and is_url(place) else Path(place)


class ObjectPath:
    """An object, or all objects whose names begin with this one and ``/``: the part of `pathlib.Path` there is here.

    Parameters
    ----------
    url
        ``s3://BUCKET/KEY``, ``gs://``, ``az://CONTAINER/KEY`` or ``https://HOST/KEY``.

    Raises
    ------
    InputError
        Where the scheme is another, no bucket is named, or a password is. The methods raise `MissingError` where there
        is no such object or bucket, `AccessError` where the storage denies it, and `StorageError` where it fails.

    Examples
    --------
    >>> place = ObjectPath("s3://photos/cats") / "tom.jpg"
    >>> str(place), place.name, place.parent
    ('s3://photos/cats/tom.jpg', 'tom.jpg', ObjectPath('s3://photos/cats'))
    """

    __slots__ = ("_key", "_root")

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None or match[1] not in SCHEMES or not match[2]:
            raise InputError(
                f"a URL must be one of {', '.join(f'{s}://…' for s in SCHEMES)} with a bucket, got "
                f"{without_secrets(url)!r}"
            )
        if "@" in match[2]:
            raise InputError(
                f"a URL must not hold a name or password, got {without_secrets(url)!r} with some: set the storage's "
                "credentials in the environment"
            )
        self._root = f"{match[1]}://{match[2]}"
        self._key = "/".join(part for part in match[3].split("/") if part)

    # --- names ---

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return self._key

    @property
    def name(self) -> str:
        """The last part of the name; of a bucket, the bucket's."""
        return self._key.rpartition("/")[2] or self._root.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last ending."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """The place one part up; the bucket's own is itself."""
        return ObjectPath(f"{self._root}/{self._key.rpartition('/')[0]}")

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self._root}/{self._key}/{name}")

    def relative_name(self, below: ObjectPath) -> str:
        """Return the name of this object from `below`, which it lies under, on."""
        return self._key[len(below._key) + 1 if below._key else 0 :]

    def __str__(self) -> str:
        return f"{self._root}/{self._key}" if self._key else self._root

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[type[ObjectPath], tuple[str]]:
        return ObjectPath, (str(self),)

    # --- reading ---

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        return self.read()[0]

    def read(self, *, most_bytes: int | None = None) -> tuple[bytes, ObjectStatus]:
        """Return the whole object and the status of just these bytes; `InputError` where it has over `most_bytes`."""
        with self._errors():
            answer = _obstore().get(self._store, self._key)
            status = _status(answer.meta)
            if most_bytes is not None and status.size > most_bytes:
                raise InputError(f"{str(self)!r} must have at most {most_bytes} bytes, it has {status.size}")
            return bytes(answer.bytes()), status

    def read_part(self, start: int, stop: int) -> tuple[bytes, ObjectStatus]:
        """Return the bytes from `start` up to `stop` or the end, and the status of the object that they are of."""
        with self._errors():
            answer = _obstore().get(self._store, self._key, options={"range": (start, stop)})
            return bytes(answer.bytes()), _status(answer.meta)

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, which must lie within the object."""
        with self._errors():
            return bytes(_obstore().get_range(self._store, self._key, start=start, end=stop))

    def read_ranges(self, starts: list[int], stops: list[int]) -> list[bytes]:
        """Return several ranges, fetched at once; near ones share a request."""
        with self._errors():
            return [bytes(part) for part in _obstore().get_ranges(self._store, self._key, starts=starts, ends=stops)]

    def status(self) -> ObjectStatus:
        """Return what the storage says of the object."""
        try:
            with self._errors():
                return _status(_obstore().head(self._store, self._key))
        except StorageError as error:
            if _WITHOUT_REASON.search(str(error.__cause__)):  # answers to HEAD have no body; a listing's has the reason
                next(self.walk(), None)
            raise

    def exists(self) -> bool:
        """Return whether there is an object of just this name."""
        try:
            self.status()
        except MissingError:
            return False
        return True

    def walk(self, *, after: str | None = None) -> Iterator[tuple[ObjectPath, ObjectStatus]]:
        """Yield every object below this place, by name, from behind the name `after` (relative) on."""
        below = f"{self._key}/" if self._key else ""
        with self._errors():
            offset = None if after is None else below + after
            for chunk in _obstore().list(self._store, self._key or None, offset=offset, chunk_size=1000):
                for meta in chunk:
                    if meta["path"].startswith(below):
                        yield ObjectPath(f"{self._root}/{meta['path']}"), _status(meta)

    def children(self) -> tuple[list[str], list[str]]:
        """Return the names right below this place: (those with more below them, objects)."""
        with self._errors():
            found = _obstore().list_with_delimiter(self._store, self._key or None)
        return (
            sorted(prefix.rpartition("/")[2] for prefix in found["common_prefixes"]),
            sorted(meta["path"].rpartition("/")[2] for meta in found["objects"]),
        )

    # --- writing ---

    def write_bytes(self, data: bytes) -> None:
        """Make `data` the object, whatever it was before."""
        with self._errors():
            _obstore().put(self._store, self._key, data, use_multipart=len(data) > _LARGEST_PUT)

    def create(self, data: bytes) -> None:
        """Make `data` the object; `ExistsError` where there is one: of several who try, one succeeds."""
        exceptions = _obstore().exceptions
        try:
            with self._errors():
                _obstore().put(self._store, self._key, data, mode="create", use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise ExistsError(f"{str(self)!r} must not exist yet, it does") from error
        except StorageError as error:
            if "<Code>NotImplemented</Code>" in str(error.__cause__):
                raise self._without_conditions() from error
            raise

    def require_conditions(self) -> None:
        """Raise `StorageError` where `create` cannot be relied on: where it puts this object, which is there, again."""
        try:
            self.create(self.read_bytes())
        except ExistsError:
            return
        raise self._without_conditions()

    def _without_conditions(self) -> StorageError:
        return StorageError(
            f"{str(self)!r} must lie in a storage that honours conditional writes (If-None-Match: *), this one does "
            "not: use one that does, such as S3, GCS, Azure, R2 or MinIO"
        )

    def claim(self, data: bytes) -> None:
        """As `create`, for `data` that nobody else puts: found there where an answer was lost, it is this one's."""
        try:
            self.create(data)
        except ExistsError:
            if self.read_bytes() != data:
                raise

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the object; a storage need not say whether there was one, so `missing_ok` is what most do anyway."""
        try:
            with self._errors():
                _obstore().delete(self._store, self._key)
        except MissingError:
            if not missing_ok:
                raise

    # --- the storage ---

    @property
    def _store(self) -> Any:
        store, process = _opened(self._root)
        if process != os.getpid():
            raise StorageError(
                f"{self._root!r} must be reached from a process of its own start, this one was forked from one that "
                "had opened it: start processes by 'spawn' (DataLoader(multiprocessing_context='spawn'))"
            )
        return store

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what obstore raises into what featcache does; refused conditions stay what they are."""
        exceptions = _obstore().exceptions
        try:
            yield
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except (FileNotFoundError, exceptions.NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                self._refuse(error)
            raise MissingError(f"{str(self)!r} must be in its storage, it is not") from error
        except exceptions.BaseError as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> NoReturn:
        text = str(error)
        reason = next((match[1] for pattern in _REASONS if (match := pattern.search(text))), text.partition("\n")[0])
        reason = reason[:_LONGEST_REASON]
        if "NoSuchBucket" in text:
            raise MissingError(f"the bucket {self._root!r} must exist, it does not: check its name") from error
        if any(sign in text for sign in _OTHER_REGION):
            raise StorageError(
                f"{self._root!r} must lie in the region that AWS_REGION names, it does not ({reason}): set AWS_REGION "
                "to that of the bucket"
            ) from error
        exceptions = _obstore().exceptions
        denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if denied or _DENIED.search(text):
            raise AccessError(
                f"{str(self)!r} must be open to these credentials, it is not ({reason}): set those of the storage in "
                "the environment"
            ) from error
        raise StorageError(f"{str(self)!r} must answer, got: {reason}") from error


def remove_objects(paths: Sequence[ObjectPath]) -> None:
    """Remove objects of one bucket, many in one request; those that are not there are no error."""
    for start in range(0, len(paths), _MOST_REMOVED):
        part = paths[start : start + _MOST_REMOVED]
        with suppress(MissingError), part[0]._errors():
            _obstore().delete(part[0]._store, [path.key for path in part])


Place = Path | ObjectPath


def _status(meta: Any) -> ObjectStatus:
    return ObjectStatus(meta["size"], int(meta["last_modified"].timestamp() * 1e6) * 1000, meta["e_tag"] or "")


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
    except ImportError as error:
        raise DependencyError(
            "object storage needs the package obstore, it is not installed: pip install 'featcache[objects]'"
        ) from error
    return obstore


@lru_cache(maxsize=64)
def _opened(root: str) -> tuple[Any, int]:
    """Return the storage and the process that opened it: obstore's threads do not live on in a fork of that."""
    from obstore.store import from_url

    _obstore()
    try:
        # empty options would hide what the environment says of the client, such as AWS_ALLOW_HTTP
        options: Any = {"allow_http": True} if root.startswith("http://") else None
        return from_url(root, client_options=options, retry_config=cast(Any, RETRIES)), os.getpid()
    except (ValueError, _obstore().exceptions.BaseError) as error:
        raise InputError(f"{root!r} must be a storage that can be opened, got: {str(error).splitlines()[0]}") from error
