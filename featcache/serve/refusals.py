"""What a request is refused with: every error as an HTTP status and one line of the words that the commands use."""

from __future__ import annotations

from collections.abc import Mapping

from featcache.errors import (
    FeatcacheError,
    ImageError,
    InputError,
    LargeImageError,
    LargeTextError,
    MissingError,
    SampleError,
)

RETRY_SECONDS = 1
CLOSE = {"connection": "close"}  # what is left of the body is not read


class RefusedError(FeatcacheError):
    """A request that is answered by `status` and its message; `headers` go with it."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


def busy(message: str, *, close: bool = False) -> RefusedError:
    """Return the refusal of a server that has no room now, 503: come again later."""
    headers = {"retry-after": str(RETRY_SECONDS), **(CLOSE if close else {})}
    return RefusedError(503, f"{message}: try again in a moment", headers=headers)


def status_of(error: FeatcacheError) -> int:
    """Return the status that an error of this package is answered with: the input's fault, or else the server's."""
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, (LargeImageError, LargeTextError)):
        return 413
    if isinstance(error, ImageError):
        return 415
    if isinstance(error, MissingError):
        return 404
    return 400 if isinstance(error, (InputError, SampleError)) else 500
