"""The exception tree: every error a user can cause or meet is a `FeatcacheError` and the builtin one would catch.

A message says what must hold, what came, and what to do, with values in ``repr``. The command line prints it as one
line and exits 1; a traceback therefore always means a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FeatcacheError(Exception):
    """Base of every error this package raises on purpose.

    Examples
    --------
    >>> import featcache
    >>> try:
    ...     featcache.open_cache("nowhere")
    ... except featcache.FeatcacheError as error:
    ...     print(type(error).__name__, isinstance(error, FileNotFoundError))
    MissingError True
    """


class InputError(FeatcacheError, ValueError):
    """A value, file or folder given by the user is not what the verb needs."""


class MissingError(FeatcacheError, FileNotFoundError):
    """A file or folder that must exist does not."""


class ExistsError(FeatcacheError, FileExistsError):
    """An output exists already and may not be overwritten."""


class SampleError(FeatcacheError, ValueError):
    """One input cannot be read, or is not what it must be; the message is the recorded reason."""


class ReadError(SampleError):
    """The bytes of one input cannot be had; the message is the recorded reason."""


class ImageError(SampleError):
    """The bytes of one image cannot be turned into pixels; the message is the recorded reason."""


class LargeImageError(ImageError):
    """An image has more pixels than are decoded."""


class LargeTextError(SampleError):
    """A text has more bytes than are read."""


class BackboneError(FeatcacheError, LookupError):
    """No such backbone, or one without what was asked of it."""


class WeightsError(FeatcacheError, ValueError):
    """Weights that cannot be had, or do not fit the network they are loaded into."""


class RecipeMismatchError(FeatcacheError, ValueError):
    """A cache was opened to be extended with another Recipe than the one its rows were computed with."""


class CorruptError(FeatcacheError, OSError):
    """Stored bytes do not match their checksum or their format."""


class FormatError(FeatcacheError, ValueError):
    """A directory or file is not in a format this version reads (not a cache, or a newer one)."""


class LockedError(FeatcacheError, BlockingIOError):
    """Another process is writing to the same cache."""


class StorageError(FeatcacheError, OSError):
    """The disk is full, read-only, or refused a write; what was committed before is safe."""


class ClusterError(FeatcacheError, ConnectionError):
    """A cluster lost what was computed in it; what was committed before is safe."""


class AccessError(StorageError, PermissionError):
    """A storage does not open what was asked for to these credentials."""


class DependencyError(FeatcacheError, ImportError):
    """An optional package is needed for what was asked."""


class VerificationError(FeatcacheError, RuntimeError):
    """A file that was checked does not do what it must; nothing of it is claimed."""


class BudgetError(FeatcacheError, RuntimeError):
    """A requested budget (accuracy, bytes, latency) cannot be met; message and `best`, JSON values, hold the best."""

    def __init__(self, message: str, *, best: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.best = best
