"""The place where it runs: terminals, streams, rights, limits, interrupts."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from reports.report import FEATCACHE, SMALL, Outcome, Report, draw_classes

ODD = "a\nb\tc\x1b[31md\u202ee"  # a newline, a tab, a colour, and a mark that turns the reading direction
CLASSES = ("猫", ODD)
EACH = 4


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with ``photos`` of classes with names that no plain terminal shows, and what is made of them."""
    kept = tempfile.TemporaryDirectory()
    folder = Path(kept.name)
    draw_classes(folder / "photos", *CLASSES, each=EACH)
    for command in (
        ("build", "photos", "--cache", "cache", *SMALL),
        ("train", "cache", "--out", "head"),
        ("merge", "head", "cache", "--out", "model"),
    ):
        subprocess.run([*FEATCACHE, *command], cwd=folder, check=True, capture_output=True)
    return kept


def _given(*command: object) -> Callable[[Path], Sequence[Sequence[object]]]:
    """Return an arrangement: what `_made` holds, and one command on it."""

    def arrange(folder: Path) -> Sequence[Sequence[object]]:
        shutil.copytree(_made().name, folder, dirs_exist_ok=True)
        return [command]

    return arrange


def _shell(script: str) -> tuple[str, ...]:
    """Return what starts a command as ``"$@"`` of a script."""
    return ("bash", "-c", script, "bash")


def _silently(outcome: Outcome) -> None:
    """Right, and nothing but notes of ours on stderr."""
    assert outcome.status == 0, outcome.stderr[-2000:]
    assert all(line.startswith("note: ") for line in outcome.lines), outcome.stderr


def _refused(*words: str) -> Callable[[Outcome], None]:
    """Return a check: refused in one line, which says `words`; notes may stand before it."""

    def check(outcome: Outcome) -> None:
        line = outcome.refusal
        assert all(word in line for word in words), line
        assert all(other.startswith("note: ") for other in outcome.lines[:-1]), outcome.stderr

    return check


def _one_line_for_each(outcome: Outcome) -> None:
    _silently(outcome)
    lines = outcome.stdout.splitlines()
    assert len(lines) == len(CLASSES) * EACH, outcome.stdout
    assert all(line.count("\t") == 2 and line.replace("\t", "").isprintable() for line in lines), lines
    assert r"a\nb\tc\x1b[31md\u202ee" in outcome.stdout


def _labels_survive(outcome: Outcome) -> None:
    _silently(outcome)
    assert outcome.stdout.isascii()
    assert {entry["label"] for entry in outcome.json()} <= set(CLASSES)
    assert {entry["path"] for entry in outcome.json()} == {f"{name}/{i}.jpg" for name in CLASSES for i in range(EACH)}


def _ascii(outcome: Outcome) -> None:
    _silently(outcome)
    assert outcome.stdout.isascii()
    assert r"\u732b" in outcome.stdout


def _table_in_utf8(outcome: Outcome) -> None:
    _silently(outcome)
    assert "猫/0.jpg,猫," in outcome.stdout


def _lost_note(outcome: Outcome) -> None:
    assert (outcome.status, outcome.stderr) == (1, ""), (outcome.status, outcome.stderr)
    assert json.loads(outcome.stdout)["rows"] == len(CLASSES) * EACH


def _quiet(outcome: Outcome) -> None:
    assert outcome.status == 141, (outcome.status, outcome.stderr)
    assert all(line.startswith("note: ") for line in outcome.lines), outcome.stderr


def _private(outcome: Outcome) -> None:
    _silently(outcome)
    written = [outcome.folder / "new", *(outcome.folder / "new").rglob("*")]
    assert len(written) > 2
    assert not [path for path in written if path.stat().st_mode & 0o077], written


def _as_anybody() -> tuple[str, ...]:
    """Return what takes root's power over files that are not its to write."""
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()


def _read_only(*command: object) -> Callable[[Path], Sequence[Sequence[object]]]:
    def arrange(folder: Path) -> Sequence[Sequence[object]]:
        commands = _given(*command)(folder)
        for path in [folder / "cache", *(folder / "cache").rglob("*")]:
            path.chmod(path.stat().st_mode & 0o555)
        for lock in (folder / "cache").rglob("*-lock"):  # on a disk that could never be written to there is none
            lock.parent.chmod(0o755)
            lock.unlink()
            lock.parent.chmod(0o555)
        return commands

    return arrange


def _stopped(status: int, word: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        assert outcome.status == status, (outcome.status, outcome.stderr)
        assert outcome.lines[-1] == f"featcache: {word}; what was committed is kept, run it again to carry on"
        assert not list((outcome.folder / "tmp").iterdir())
        assert not [path for path in outcome.folder.iterdir() if path.name.startswith(".")]

    return check


def _with_tmp(*command: object) -> Callable[[Path], Sequence[Sequence[object]]]:
    def arrange(folder: Path) -> Sequence[Sequence[object]]:
        (folder / "tmp").mkdir()
        return _given(*command)(folder)

    return arrange


REPORTS = (
    Report(
        "label-with-newline",
        "a newline, tab, escape sequence or bidi mark in a class's name tore lines apart or coloured the terminal",
        "it stands escaped in its place: one line for each image, three fields each",
        _given("predict", "model", "photos"),
        _one_line_for_each,
    ),
    Report(
        "ascii-predict-json",
        "predict --json ended in a traceback where the terminal takes ASCII only",
        "JSON in ASCII, with the same labels and paths",
        _given("predict", "model", "photos", "--json"),
        _labels_survive,
        {"PYTHONIOENCODING": "ascii"},
    ),
    Report(
        "ascii-info",
        "info ended in a traceback where the terminal takes ASCII only",
        "what the terminal lacks is escaped",
        _given("info", "cache"),
        _ascii,
        {"PYTHONIOENCODING": "ascii"},
    ),
    Report(
        "locale-without-utf8",
        "file names were decoded by a locale that is not UTF-8: classes had other names than elsewhere",
        "names are UTF-8 whatever the locale, and a table on stdout is",
        _given("info", "cache", "--samples", "-"),
        _table_in_utf8,
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    Report(
        "stdout-full",
        "results went to a full disk, and the exit status was 0 or a traceback came",
        "one line and exit status 1",
        _given("train", "cache", "--json"),
        _refused("standard output must be writable, got: No space left on device"),
        under=_shell('exec "$@" > /dev/full'),
    ),
    Report(
        "stdout-closed",
        "results went nowhere, and the exit status was 0",
        "one line and exit status 1",
        _given("train", "cache", "--json"),
        _refused("standard output must be writable, it is closed"),
        under=_shell('exec "$@" >&-'),
    ),
    Report(
        "stderr-closed",
        "a closed stderr ended the command in the middle",
        "results come whole; a note that could not be said is exit status 1",
        _given("info", "cache", "--json"),
        _lost_note,
        under=_shell('exec "$@" 2>&-'),
    ),
    Report(
        "reader-gone",
        "`featcache ... | head` ended in BrokenPipeError",
        "it ends quietly, as if by SIGPIPE",
        _given("info", "cache", "--samples", "-"),
        _quiet,
        under=_shell('"$@" | true; exit ${PIPESTATUS[0]}'),
    ),
    Report(
        "directory-gone",
        "the current directory was deleted: a traceback, or an abort of the maths library",
        "one line that says so",
        _given("train", "cache"),
        _refused("the current directory must be there, it is gone"),
        under=_shell('mkdir gone && cd gone && rmdir ../gone && exec "$@"'),
    ),
    Report(
        "disk-full-under-a-head",
        "a disk that fills while the head is saved: a traceback",
        "one line that names the place, and no head",
        _given("train", "cache", "--out", "new"),
        _refused("new'", "must be writable, got: File too large"),
        under=_shell('ulimit -f 1; exec "$@"'),
    ),
    Report(
        "cache-read-only",
        "a cache on a medium that cannot be written to, or another user's, could not be trained from",
        "it trains: reading writes nothing",
        _read_only("train", "cache"),
        _silently,
        under=_as_anybody(),
    ),
    Report(
        "cache-read-only-verify",
        "a cache that cannot be written to could not be verified",
        "it is verified: reading writes nothing",
        _read_only("verify", "cache"),
        _silently,
        under=_as_anybody(),
    ),
    Report(
        "umask-077",
        "outputs were readable for others in spite of the umask",
        "every file and folder follows it",
        _given("train", "cache", "--out", "new"),
        _private,
        under=_shell('umask 077; exec "$@"'),
    ),
    Report(
        "no-home",
        "HOME is unset: a traceback while the cache directory was looked for",
        "it works",
        _given("build", "photos", "--cache", "new", *SMALL),
        _silently,
        under=("env", "-u", "HOME"),
    ),
    Report(
        "one-processor",
        "bound to one processor, the runtime complained of threads it could not pin",
        "nothing but results",
        _given("train", "cache", "--out", "new"),
        _silently,
        under=("taskset", "-c", str(min(os.sched_getaffinity(0)))),
    ),
    Report(
        "interrupted",
        "Ctrl-C printed pages, or nothing, and left folders behind",
        "one line that says what stays, exit status 130, nothing temporary left",
        _with_tmp("build", "photos", "--cache", "new", *SMALL),
        _stopped(130, "interrupted"),
        {"TMPDIR": "tmp"},
        under=("timeout", "--preserve-status", "--signal=INT", "0.8"),
    ),
    Report(
        "terminated",
        "SIGTERM (a job's time limit, `docker stop`) ended it without a word and left folders behind",
        "one line that says what stays, exit status 143, nothing temporary left",
        _with_tmp("merge", "head", "cache", "--out", "new"),
        _stopped(143, "terminated"),
        {"TMPDIR": "tmp"},
        under=("timeout", "--preserve-status", "--signal=TERM", "1.5"),
    ),
)
