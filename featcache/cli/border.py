"""Where the program ends: each error, interrupt and unwritable output becomes one line and an exit status.

====== ==============================================================================================
status when
====== ==============================================================================================
0      it was done
1      what was asked cannot be had: by the input, the machine, or the place results are written to
2      the command line is not understood
70     a bug of featcache, with its traceback
130    interrupted by Ctrl-C; 143 by SIGTERM; 141: whoever read the results has gone (``| head``)
====== ==============================================================================================
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from featcache.cli.output import ReaderGoneError, finish_output, open_streams, say, something_was_lost
from featcache.errors import FeatcacheError, MissingError
from featcache.system.files import free_space_advice

_BUG = "this is a bug of featcache; please report it with the lines above, the command, and `featcache --version`"
_RIGHTS = "see to its rights, or name another place"
_ADVICE = {
    errno.EROFS: _RIGHTS, errno.EACCES: _RIGHTS, errno.EPERM: _RIGHTS,
    errno.EMFILE: "allow more open files (ulimit -n)", errno.ENFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "free memory, or work on less at once",
}  # fmt: skip

_LATER_S = 0.02


class Interrupted(BaseException):
    """SIGINT or SIGTERM, on its way through whatever has to be left tidy."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_to_exit_status(command: Callable[[], object]) -> int:
    """Return the exit status of `command`, having said in one line why it is not 0.

    A command that ends by `SystemExit` has said so itself.
    """
    open_streams()
    # torch, imported, makes this folder for compilers that no verb uses: name one that is there, to leave none behind
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TMPDIR") or "/tmp")
    status = 0
    try:
        with _interrupts_raised():
            try:
                _refuse_gone_directory()
                command()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finish_output()
    except FeatcacheError as error:
        status = _refuse(str(error))
    except Interrupted as interrupt:
        word = "interrupted" if interrupt.number == signal.SIGINT else "terminated"
        say(f"featcache: {word}; what was committed is kept, run it again to carry on")
        return 128 + interrupt.number
    except ReaderGoneError:
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - here it ends: either the machine's doing, or a bug that says so
        line = refusal_of_machine(error)
        if line is None:
            for part in "".join(traceback.format_exception(error)).splitlines():
                say(part)
            say(_BUG)
            return 70
        status = _refuse(line)
    return 1 if status == 0 and something_was_lost() else status


@contextmanager
def _interrupts_raised() -> Iterator[None]:
    """Raise `Interrupted` inside the block for SIGINT and SIGTERM, unless they are ignored (nohup, a shell's job)."""
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `Interrupted`; while a module is being imported, a moment later.

    C++ that imports Python modules as it is imported itself (torch does) ends the process at any exception from there.
    """
    if _is_importing(frame):
        later = threading.Timer(_LATER_S, _signal_main_thread, [number])
        later.daemon = True
        later.start()
        return
    raise Interrupted(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _signal_main_thread(number: int) -> None:
    ident = threading.main_thread().ident
    if ident is not None and threading.main_thread().is_alive():
        signal.pthread_kill(ident, number)


def _refuse(message: str) -> int:
    say(f"featcache: {' '.join(message.split())}")
    return 1


def refusal_of_machine(error: BaseException) -> str | None:
    """Return what to tell the user where the machine refused (files, memory, text that is not UTF-8); None: it did not.

    Told by the types of the error and of those it was raised from; by a name in the text where torch has no type.
    """
    for one in _causes(error):
        if isinstance(one, OSError):
            return _refusal_of_system(one)
        if isinstance(one, MemoryError) or _is_memory_of_torch(one):
            got = str(one).partition("\n")[0] or "none is left"
            return f"memory must suffice, got: {got}; free memory, or work on less at once"
        if isinstance(one, UnicodeError):
            return f"text must be UTF-8, got: {one}; save it as UTF-8, or rename what has such a name"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_memory_of_torch(error: BaseException) -> bool:
    """Return whether torch lacked memory: of a device, which has a type, or of the machine.

    The latter is a plain `RuntimeError` without an errno or another mark. Its text is the failed check of torch's
    allocator, whose class name is in it in every language and version; nothing else raises in that name.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    by_allocator = type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)
    return by_allocator or isinstance(error, torch.OutOfMemoryError)


def _refusal_of_system(error: OSError) -> str:
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = f"{' and '.join(map(repr, names))} must be usable" if names else "the system must do what it is asked to"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = free_space_advice() if full else _ADVICE.get(error.errno or 0)
    return f"{what}, got: {error.strerror or str(error) or type(error).__name__}" + (f"; {advice}" if advice else "")


def _refuse_gone_directory() -> None:
    """Raise `MissingError` where the current directory was removed: relative paths have no meaning, and MKL aborts."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise MissingError("the current directory must be there, it is gone: change to another") from error
