"""Where the program ends: every error is one line and a status, every line is one line, a bug says that it is one."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import featcache.cli
from featcache.cli import output
from featcache.cli.border import run_to_exit_status
from featcache.cli.output import put, put_json, say
from featcache.errors import InputError, StorageError

ODD = "a\nb\tc\r\x1b[31md\u202ee\u2028f\x9bg\udcff"
SHOWN = r"a\nb\tc\r\x1b[31md\u202ee\u2028f\x9bg\udcff"
BUG = "this is a bug of featcache; please report it with the lines above, the command, and `featcache --version`"


def _ends(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def command() -> None:
        raise error

    status = run_to_exit_status(command)
    return status, capsys.readouterr().err


def _caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("two\nlines\x1b[1m"), r"two lines\x1b[1m"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"),
         "'/x/y' must be usable, got: Permission denied; see to its rights, or name another place"),
        (OSError(errno.EIO, "Input/output error"), "the system must do what it is asked to, got: Input/output error"),
        (OSError(errno.EMFILE, "Too many open files", "a"),
         "'a' must be usable, got: Too many open files; allow more open files (ulimit -n)"),
        (MemoryError("Unable to allocate 9 TiB"),
         "memory must suffice, got: Unable to allocate 9 TiB; free memory, or work on less at once"),
        (MemoryError(), "memory must suffice, got: none is left; free memory, or work on less at once"),
        (_caused(RuntimeError("export failed"), OSError(errno.EIO, "Input/output error", "b")),
         "'b' must be usable, got: Input/output error"),
    ],
)  # fmt: skip
def test_what_the_machine_or_the_input_refuses_is_one_line(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1, no traceback, whatever stands in the message."""
    assert _ends(error, capsys) == (1, f"featcache: {line}\n")


def test_a_full_disk_names_the_temporary_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """What is computed in between lies there, and the system does not say which of the two was full."""
    status, said = _ends(OSError(errno.ENOSPC, "No space left on device"), capsys)
    assert status == 1
    assert said.count("\n") == 1
    assert "No space left on device; free space there and in the temporary folder '" in said


def test_text_that_is_not_utf8_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """With what came."""
    with pytest.raises(UnicodeDecodeError) as raised:
        b"\xff".decode()
    status, said = _ends(raised.value, capsys)
    assert status == 1
    assert re.fullmatch(r"featcache: text must be UTF-8, got: 'utf-8' codec can't decode byte 0xff .*\n", said)


def test_memory_that_torch_lacks_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Told by its type, or, of the machine's memory, by the name of the allocator that torch really fails in."""
    torch = pytest.importorskip("torch")
    assert _ends(torch.OutOfMemoryError("CUDA out of memory"), capsys)[0] == 1
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    status, said = _ends(raised.value, capsys)
    assert status == 1
    assert said.startswith("featcache: memory must suffice, got: ")
    assert said.count("\n") == 1
    assert _ends(RuntimeError("a shape"), capsys)[0] == 70


def test_a_bug_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback, then where it belongs; another status than a refusal."""
    status, said = _ends(ZeroDivisionError("ours"), capsys)
    assert status == 70
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.splitlines()[-2:] == ["ZeroDivisionError: ours", BUG]


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupts_are_one_line(number: int, status: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And the handlers that were there are there again."""
    before = signal.getsignal(number)
    assert run_to_exit_status(lambda: signal.raise_signal(number)) == status
    line = f"featcache: {word}; what was committed is kept, run it again to carry on\n"
    assert capsys.readouterr().err == line
    assert signal.getsignal(number) is before


def test_an_interrupt_leaves_no_temporary_folder(tmp_path: Path) -> None:
    """It passes through what tidies up."""
    from featcache.system.files import new_directory

    def command() -> None:
        with new_directory(tmp_path / "out") as folder:
            (folder / "half").write_bytes(b"x")
            signal.raise_signal(signal.SIGTERM)

    assert run_to_exit_status(command) == 143
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_interrupt_stays_ignored() -> None:
    """As nohup and a shell's background jobs have it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_to_exit_status(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, on stderr, and in fields apart by tabs."""
    put(ODD, "second")
    say(ODD)
    captured = capsys.readouterr()
    assert captured.out == f"{SHOWN}\tsecond\n"
    assert captured.err == f"{SHOWN}\n"


def test_names_of_any_language_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Letters, marks that join, emoji: they stand in line already."""
    put("猫 naïve שלום 👩\u200d🔬")
    assert capsys.readouterr().out == "猫 naïve שלום 👩\u200d🔬\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_json_is_the_same_value_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """On one line of the terminal's own characters, beyond the basic plane too."""
    value = {"label": ODD, "猫": "😀é\x7f"}
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    put_json(value)
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert json.loads(text) == value
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


def test_text_is_escaped_where_the_encoding_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not fail after the work is done."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run_to_exit_status(lambda: put("猫😀")) == 0
    assert written.getvalue() == b"\\u732b\\U0001f600\n"


class _Refusing(io.TextIOBase):
    def __init__(self, error: OSError) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.fixture
def spared_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave this process's own stdout as it is when a refused one is forgotten."""
    monkeypatch.setattr(output, "_forget_stdout", lambda: None)


@pytest.mark.usefixtures("spared_stdout")
def test_results_that_cannot_be_written_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error of the place; a reader that has gone ends the command without one."""
    monkeypatch.setattr(sys, "stdout", _Refusing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StorageError, match="standard output must be writable, got: No space left on device"):
        put("x")
    monkeypatch.setattr(sys, "stdout", _Refusing(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert run_to_exit_status(lambda: put("x")) == 141


def test_what_could_not_be_said_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work goes on to its end."""
    monkeypatch.setattr(output._Streams, "lost", False)
    monkeypatch.setattr(sys, "stderr", _Refusing(OSError(errno.ENOSPC, "No space left on device")))
    done: list[int] = []

    def command() -> None:
        say("note")
        done.append(1)

    assert run_to_exit_status(command) == 1
    assert done == [1]


def test_warnings_and_records_of_libraries_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a place in the code, which is no news to a user, and each on a line of its own."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)

    def command() -> None:
        logging.getLogger("library").warning("from %s", "a\nlibrary")
        warnings.warn("of\nit", stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run_to_exit_status(command) == 0
    assert said.getvalue() == "warning: from a\\nlibrary\nwarning: of\\nit\n"


def test_the_verbs_write_in_one_place_only() -> None:
    """So that no line escapes the escaping."""
    folder = Path(featcache.cli.__file__).parent
    writing = re.compile(r"(?<!>>> )\bprint\(|sys\.std(out|err)|\becho\(")
    found = [file.name for file in sorted(folder.glob("*.py")) if writing.search(file.read_text(encoding="utf-8"))]
    assert found == ["output.py"]


def test_a_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """Before anything asks where it is: MKL would abort."""
    gone = tmp_path / "gone"
    gone.mkdir()

    def enter_and_remove() -> None:
        os.chdir(gone)
        gone.rmdir()

    command = [sys.executable, "-c", "from featcache.cli import main; main()", "info", "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=enter_and_remove)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "featcache: the current directory must be there, it is gone: change to another\n"


def test_closed_streams_take_no_numbers(tmp_path: Path) -> None:
    """A file that got the number of stderr, a store perhaps, would be written to by whoever prints."""

    def close_all() -> None:
        for number in range(3):
            os.close(number)

    code = (
        "import os\nfrom featcache.cli.output import open_streams\nopen_streams()\n"
        f"taken = os.open({str(tmp_path / 'file')!r}, os.O_RDWR | os.O_CREAT)\nos.write(taken, str(taken).encode())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, preexec_fn=close_all)
    assert int((tmp_path / "file").read_text(encoding="ascii")) > 2


def test_an_interrupt_waits_until_what_is_imported_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupted_while_imported.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\ncomplete = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    went_on = []

    def command() -> None:
        import interrupted_while_imported

        assert interrupted_while_imported.complete
        time.sleep(10)
        went_on.append(True)

    assert run_to_exit_status(command) == 130
    assert capsys.readouterr().err.startswith("featcache: interrupted;")
    assert sys.modules.pop("interrupted_while_imported").complete
    assert not went_on
