"""`Entrance`: a browser brings the token once, in the address that the command said; from then on in a cookie."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_COOKIE = "featcache_token"


class Entrance:
    """The application `inner`, which wants `token` in ``Authorization``.

    The cookie goes with requests of the server's own page alone (``SameSite=Strict``, and ``Origin`` is looked at), and
    no script reads it.
    """

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner, self._token = inner, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if scope["path"] == "/" and self._is_token(_asked(scope)):
                answer = RedirectResponse("/", 303, headers={"cache-control": "no-store"})
                answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict", path="/")
                await answer(scope, receive, send)
                return
            if "authorization" not in headers and _is_own(headers):
                MutableHeaders(scope=scope)["authorization"] = f"Bearer {_cookie(headers)}"
        await self._inner(scope, receive, send)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())


def _asked(scope: Scope) -> str:
    values = parse_qs(scope["query_string"].decode("ascii", "replace"), max_num_fields=10)
    return str(values.get("token", [""])[0])


def _is_own(headers: Headers) -> bool:
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
