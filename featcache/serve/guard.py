"""Who may ask: a token where there is one; else only this machine, and no page of another site in its browser."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from featcache.serve.refusals import RefusedError

# without a token: probes have none, and a description of the endpoints is no secret
_OPEN = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")


def is_loopback(host: str) -> bool:
    """Return whether `host` is reached from this machine alone.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_allowed(path: str, headers: Headers, *, token: str | None) -> None:
    """Raise `RefusedError` where a request may not be answered: 401 without the token, 403 for a foreign host or page.

    A name that another site lets point here (DNS rebinding) shows in ``Host``, a form or script of another site in
    ``Origin``.
    """
    if token is not None:
        open_path = path in _OPEN or path.startswith("/docs/")
        given = headers.get("authorization", "").encode("utf-8", "replace")
        if not open_path and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise RefusedError(
                401,
                "a request must have the header 'Authorization: Bearer TOKEN' with this server's token",
                headers={"www-authenticate": "Bearer"},
            )
        return
    host = headers.get("host", "")
    if not is_loopback(_hostname(f"//{host}")):
        raise RefusedError(403, f"Host must be an address of this machine such as localhost, got {host[:100]!r}")
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise RefusedError(403, f"requests of a page must come from this server's own, got Origin {origin[:100]!r}")


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:  # brackets that do not match
        return ""
