"""What a server says while it runs: one JSON object a line on stderr, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

_LOGGER = logging.getLogger("featcache.serve")
_LIBRARIES = ("uvicorn", "asyncio", "python_multipart")


class _JsonLines(logging.Handler):
    """A record as a line; one that cannot be written is lost, and the server goes on."""

    def emit(self, record: logging.LogRecord) -> None:
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            **getattr(record, "values", {"message": record.getMessage()}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            values["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        try:
            sys.stderr.write(json.dumps(values, default=str) + "\n")
            sys.stderr.flush()
        except OSError:
            pass  # nobody reads any more


def log_as_json() -> None:
    """Let this room's records, and those of the libraries that serve, be JSON lines from now on."""
    handler = _JsonLines()
    for name, level in ((_LOGGER.name, logging.INFO), *((name, logging.WARNING) for name in _LIBRARIES)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **values: Any) -> None:
    """Log that `event` happened, with JSON `values`, and the traceback of a bug's `error`."""
    _LOGGER.log(level, event, exc_info=error, extra={"event": event, "values": values})
