"""Where every request comes in and every answer goes out: allowed or not, counted, logged; a bug is a line as well."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featcache.serve.logs import log
from featcache.serve.refusals import RefusedError
from featcache.serve.service import json_response

_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Border:
    """The application `inner` with what goes for every endpoint.

    Parameters
    ----------
    inner
        The application behind.
    check
        Called with path and headers of each request: raises `RefusedError` where it may not be answered.
    answered
        Called with endpoint, status and seconds of each answer.
    """

    def __init__(
        self, inner: ASGIApp, *, check: Callable[[str, Headers], object],
        answered: Callable[[str, int, float], object] = lambda endpoint, status, seconds: None,
    ) -> None:  # fmt: skip
        self._inner, self._check, self._answered = inner, check, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            await self._inner(scope, receive, noted)
        except RefusedError as error:
            response = json_response({"error": str(error)}, status=error.status, headers=error.headers)
            await response(scope, receive, noted)
        except Exception as error:  # noqa: BLE001 - a bug: it was answered by 500, and the server goes on
            log("bug", level=logging.ERROR, error=error, path=scope["path"][:200])
        seconds = time.perf_counter() - started
        endpoint = getattr(scope.get("route"), "path", "other")
        self._answered(endpoint, status, seconds)
        parameters = scope.get("path_params", {})
        log(
            "request",
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            milliseconds=round(seconds * 1e3, 3),
            **{key: parameters[name][:200] for name, key in (("name", "model"), ("version", "version"))
               if name in parameters},
        )  # fmt: skip
