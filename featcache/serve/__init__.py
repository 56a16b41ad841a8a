"""What was shipped, over HTTP: `serve` answers for BUNDLEs, in batches, without torch."""

from __future__ import annotations

from featcache.serve.server import serve
from featcache.serve.settings import ServeSettings

__all__ = ["ServeSettings", "serve"]
