"""Lines on stdout and stderr: the one place where a text that may come from anybody is written to a terminal.

A label or path may hold a newline, a tab, an escape sequence, a mark that turns the reading direction, or characters
that the terminal's encoding lacks. None of them leaves its place in its line or ends the program: they are shown
escaped, as Python writes them. In JSON they are escaped as JSON has it, so the values stay what they are.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError, StorageError

_ADVICE = "free space there, or send the results elsewhere"
# controls, marks of direction, separators of lines and paragraphs, halves of surrogate pairs
_OUT_OF_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class ReaderGoneError(BaseException):
    """Whoever read stdout has closed it (``featcache … | head``): the command ends, and there is nothing to say."""


class _Streams:
    """What became of this process's streams: whether they were closed when it began, whether a line was lost."""

    stdout_closed = False
    stderr_closed = False
    lost = False


def escaped(text: str) -> str:
    r"""Return `text` on one line, as anybody's terminal shows it in order.

    >>> print(escaped("cat\n\x1b[31mdog"))
    cat\n\x1b[31mdog
    """
    return _OUT_OF_LINE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(line: str) -> None:
    """Write a line to stderr. One that cannot be written is remembered (`something_was_lost`), and the work goes on."""
    if _Streams.stderr_closed:
        _Streams.lost = True
        return
    try:
        sys.stderr.write(escaped(line) + "\n")
        sys.stderr.flush()
    except OSError:
        _Streams.lost = True


def put(*fields: str) -> None:
    """Write a line to stdout, its fields apart by tabs.

    Raises `StorageError` where it cannot be written, `ReaderGoneError` where nobody reads any more.
    """
    with results():
        sys.stdout.write("\t".join(map(escaped, fields)) + "\n")


def put_json(value: Any) -> None:
    """Write a value to stdout as JSON on one line; raises as `put`."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not unicode, default=_plain)
    with results():
        sys.stdout.write(_OUT_OF_LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not a JSON value: {value!r}")


@contextlib.contextmanager
def results() -> Iterator[None]:
    """Turn what the system says to a write of results inside the block into the errors of `put`."""
    try:
        if _Streams.stdout_closed:
            raise StorageError(f"standard output must be writable, it is closed; {_ADVICE}")
        yield
    except FeatcacheError:
        raise  # some are an OSError too: they have said what is wrong
    except BrokenPipeError as error:
        _forget_stdout()
        raise ReaderGoneError from error
    except OSError as error:
        _forget_stdout()
        raise StorageError(f"standard output must be writable, got: {error.strerror or error}; {_ADVICE}") from error


def _forget_stdout() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def restart_in_utf8() -> None:
    """Begin this program again in Python's UTF-8 mode where names of files are decoded by another encoding.

    A class is the same whatever the locale: its folder's name is read as UTF-8. What is printed keeps its encoding.
    Where another program calls the command line with arguments of its own, that program is left as it is.
    """
    own = sys.orig_argv[len(sys.orig_argv) - len(sys.argv) + 1 :] == sys.argv[1:]
    if own and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        encoding = os.environ.get("PYTHONIOENCODING") or (sys.stdout.encoding if sys.stdout else "ascii")
        environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": encoding}
        os.execve(sys.executable, sys.orig_argv, environment)


def open_streams() -> None:
    """Make stdin, stdout and stderr fit to be used, whatever the process was started with.

    A closed one is opened on nothing, lest the next file that is opened, a store perhaps, takes its number and is
    written to by whoever prints. Characters that an encoding lacks are escaped. Warnings and log records are lines.
    """
    _Streams.stdout_closed, _Streams.stderr_closed = sys.stdout is None, sys.stderr is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = sys.stdout or _nothing("w")
    sys.stderr = sys.stderr or _nothing("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _say_warning
    logging.basicConfig(handlers=[_Lines()], level=logging.WARNING)


def _nothing(mode: str) -> Any:
    return open(os.devnull, mode, encoding="utf-8")


def _say_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    say(f"warning: {message}")


class _Lines(logging.Handler):
    """A log record as one line of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def finish_output() -> None:
    """Write what is still buffered; raises as `put`."""
    if not _Streams.stdout_closed:
        with results():
            sys.stdout.flush()


def something_was_lost() -> bool:
    """Return whether a line could not be said on stderr."""
    return _Streams.lost
