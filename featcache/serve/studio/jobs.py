"""`Jobs`: long work as processes of its own, one at a time; queued, cancelled, logged, and picked up after a kill.

A job is a list of featcache's own command lines. Each is run on a terminal of its own, so that it draws its bar, from
which progress is read; what it prints on stdout is its result. The step that a job is at is in the database: where the
server died, the next one ends what is left of the process and begins that step again. Commands carry on by themselves
where they can: `build` extracts only what is missing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import FeatcacheError
from featcache.serve.logs import log
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.commands import FEATCACHE_ONCE_TOLD
from featcache.serve.studio.database import Database
from featcache.serve.studio.events import Events
from featcache.serve.studio.progress import Progress, read_bar
from featcache.serve.studio.steps import Step
from featcache.serve.studio.workspace import Workspace
from featcache.system.json import parse_json

_PATIENCE_SECONDS = 10.0  # between asking a process to end and ending it
_PUBLISH_SECONDS = 0.2
_MOST_QUEUED = 100
_LONGEST_LINE = 64 << 10
_LONGEST_RESULT = 4 << 20
_FIELDS = "id, kind, parameters, state, step, created, started, ended, result, error"

StepsOf = Callable[[str, Mapping[str, Any]], list[Step]]


@dataclass(slots=True)
class _Running:
    """The job that runs: its process, and what it was asked to become."""

    job: int
    process: subprocess.Popen[bytes] | None = None
    cancelled: bool = False
    progress: Progress | None = None
    step: Step | None = None
    steps: int = 1


class Jobs:
    """The queue of a workspace and the thread that works on it. `steps_of(kind, parameters)` says what a job does.

    `done` is called after each job that has ended well.
    """

    def __init__(
        self, workspace: Workspace, database: Database, events: Events, steps_of: StepsOf,
        done: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self._workspace, self._database, self._events = workspace, database, events
        self._steps_of, self._done = steps_of, done
        self._changed = threading.Condition()
        self._running: _Running | None = None
        self._closing = False
        self._pick_up()
        self._thread = threading.Thread(target=self._work, name="featcache-studio-jobs", daemon=True)
        self._thread.start()

    def _pick_up(self) -> None:
        """Put jobs that ran when a server died back into the queue, once their processes have ended."""
        left = "SELECT id, process, state FROM jobs WHERE state='running' OR process IS NOT NULL"
        for job, process, state in self._database.read(left):
            _end_left_over(process)
            self._set(job, state="queued" if state == "running" else state, process=None)
            log("job picked up", job=job, state=state)

    # --- what is asked from outside ---

    def add(self, kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job that now waits; it is on disk. Raises as `steps_of`, and `RefusedError` (503) for too many."""
        self._steps_of(kind, parameters)  # refused now rather than in its turn
        with self._database.transaction() as write:
            ((waiting,),) = write("SELECT count(*) FROM jobs WHERE state='queued'")
            if waiting >= _MOST_QUEUED:
                raise RefusedError(
                    503, f"at most {_MOST_QUEUED} jobs may wait, so many do", headers={"retry-after": "60"}
                )
            write(
                "INSERT INTO jobs(kind, parameters, state, step, created) VALUES(?, ?, 'queued', 0, ?)",
                (kind, json.dumps(parameters), time.time()),
            )
            ((job,),) = write("SELECT last_insert_rowid()")
        with self._changed:
            self._changed.notify()
        return self._told(job)

    def all_jobs(self) -> list[dict[str, Any]]:
        """Return every job, the newest first."""
        return [self._described(row) for row in self._database.read(f"SELECT {_FIELDS} FROM jobs ORDER BY id DESC")]

    def describe(self, job: int) -> dict[str, Any]:
        """Return one job. Raises `RefusedError` (404) where there is none."""
        rows = self._database.read(f"SELECT {_FIELDS} FROM jobs WHERE id=?", (job,))
        if not rows:
            raise RefusedError(404, f"a job's number must be one of /api/jobs, got {job}")
        return self._described(rows[0])

    def log_of(self, job: int) -> str:
        """Return the last of what a job's commands said. Raises `RefusedError` (404) where there is no such job."""
        self.describe(job)
        try:
            with open(self._log_file(job), "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - _LONGEST_LINE, 0))
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def cancel(self, job: int) -> dict[str, Any]:
        """Let a job not begin, or end; return it: cancelled, and no later server picks it up.

        Raises `RefusedError`: 404 where there is none, 409 after its end.
        """
        with self._changed:
            state = self.describe(job)["state"]
            if state not in ("queued", "running"):
                raise RefusedError(409, f"a job must wait or run to be cancelled, this one is {state}")
            self._set(job, state="cancelled", ended=time.time())
            running = self._running
            if running is not None and running.job == job:
                running.cancelled = True
                if running.process is not None:
                    _signal(running.process.pid, signal.SIGINT)
                    threading.Timer(_PATIENCE_SECONDS, _kill_if_running, [running.process]).start()
        return self._told(job)

    def close(self) -> None:
        """End the thread. A job that runs is ended too, and begun again by the next server."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            if self._running is not None and self._running.process is not None:
                _signal(self._running.process.pid, signal.SIGINT)
                threading.Timer(_PATIENCE_SECONDS, _kill_if_running, [self._running.process]).start()
        self._thread.join()

    # --- the queue ---

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not (waiting := self._waiting()):
                    self._changed.wait()
                if self._closing:
                    return
                self._running = running = _Running(waiting[0][0])
            job, kind, parameters, step = waiting[0]
            try:
                self._run(running, kind, parse_json(parameters), step)
            except (FeatcacheError, OSError) as error:
                self._end(running, "failed", error=" ".join(str(error).split()))
            except Exception as error:  # noqa: BLE001 - a bug: the job has failed, and the queue goes on
                log("bug", level=logging.ERROR, error=error, doing=f"running job {job}")
                self._end(running, "failed", error="the server failed, its log says where")
            finally:
                with self._changed:
                    self._running = None
            self._told(job)

    def _waiting(self) -> list[Any]:
        return self._database.read(
            "SELECT id, kind, parameters, step FROM jobs WHERE state='queued' ORDER BY id LIMIT 1"
        )

    def _run(self, running: _Running, kind: str, parameters: Mapping[str, Any], first: int) -> None:
        job = running.job
        steps = self._steps_of(kind, parameters)
        running.steps = len(steps)
        with self._changed:
            if running.cancelled:
                return
            self._set(job, state="running", started=time.time(), error=None, ended=None)
        result = ""
        for number in range(first, len(steps)):
            running.step, running.progress = steps[number], None
            self._set(job, step=number)
            self._told(job)
            status, result, last = self._command(running, steps[number])
            if self._closing and not running.cancelled:
                self._set(job, state="queued", process=None)
                return
            if status:
                self._end(running, "failed", error=last or f"{steps[number].name} ended with status {status}")
                return
        self._end(running, "done", step=len(steps), result=result)
        self._done()

    def _end(self, running: _Running, state: str, **values: Any) -> None:
        """Keep how a job ended; one that was cancelled meanwhile stays so."""
        with self._changed:
            if running.cancelled:
                self._set(running.job, process=None)
            else:
                self._set(running.job, state=state, process=None, ended=time.time(), **values)

    def _command(self, running: _Running, step: Step) -> tuple[int, str, str]:
        """Run one step; return its exit status, what it printed, and the last line that it said."""
        terminal, inside = pty.openpty()
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        try:
            with self._changed:
                if running.cancelled or self._closing:
                    return 1, "", ""
                process = running.process = subprocess.Popen(
                    [*FEATCACHE_ONCE_TOLD, *step.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=inside, cwd=self._workspace.root, env=environment, start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(inside)
        self._set(running.job, process=f"{process.pid} {_started(process.pid)}")
        _let_begin(process)
        results: list[bytes] = []
        reader = threading.Thread(target=_read_all, args=(process, results))
        reader.start()
        try:
            last = self._listen(running, terminal)
        finally:
            os.close(terminal)
        reader.join()
        status = process.wait()
        with self._changed:
            running.process = None
        return status, b"".join(results).decode("utf-8", "replace").strip(), last

    def _listen(self, running: _Running, terminal: int) -> str:
        """Log what a command says until it ends, and tell how far it has come; return its last line."""
        text, last, told = b"", "", 0.0
        assert running.step is not None
        with open(self._log_file(running.job), "a", encoding="utf-8") as file:
            file.write(f"$ featcache {' '.join(running.step.arguments)}\n")
            while data := _read_terminal(terminal):
                *lines, text = (text + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
                text = text[-_LONGEST_LINE:]
                for line in (piece.decode("utf-8", "replace").strip() for piece in lines):
                    bar = read_bar(line)
                    if bar is not None:
                        running.progress = bar
                    elif line:
                        last = line
                        file.write(f"{line}\n")
                        file.flush()
                bar = read_bar(text.decode("utf-8", "replace").strip())
                running.progress = bar or running.progress
                if time.monotonic() - told > _PUBLISH_SECONDS:
                    told = time.monotonic()
                    self._told(running.job)
        return last.removeprefix("featcache: ")

    # --- the database and the pages ---

    def _log_file(self, job: int) -> Path:
        return self._workspace.folder("jobs") / f"{job}.log"

    def _set(self, job: int, **values: Any) -> None:
        with self._database.transaction() as write:
            write(f"UPDATE jobs SET {', '.join(f'{name}=?' for name in values)} WHERE id=?", (*values.values(), job))

    def _told(self, job: int) -> dict[str, Any]:
        described = self._described_now(job)
        self._events.publish("job", **described)
        return described

    def _described_now(self, job: int) -> dict[str, Any]:
        return self._described(self._database.read(f"SELECT {_FIELDS} FROM jobs WHERE id=?", (job,))[0])

    def _described(self, row: tuple[Any, ...]) -> dict[str, Any]:
        job, kind, parameters, state, step, created, started, ended, result, error = row
        running = self._running if self._running is not None and self._running.job == job else None
        return {
            "id": job,
            "kind": kind,
            "parameters": parse_json(parameters),
            "state": state,
            "step": step,
            "steps": running.steps if running else None,
            "doing": running.step.name if running and running.step else None,
            "progress": running.progress.to_json() if running and running.progress else None,
            "created": created,
            "started": started,
            "ended": ended,
            "result": _parsed(result),
            "error": error,
        }


def _parsed(result: str | None) -> Any:
    try:
        return parse_json(result) if result else None
    except ValueError:
        return None


def _let_begin(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it was ended before
        process.stdin.write(b".")
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _read_all(process: subprocess.Popen[bytes], results: list[bytes]) -> None:
    assert process.stdout is not None
    size = 0
    while data := process.stdout.read(1 << 16):
        size += len(data)
        if size <= _LONGEST_RESULT:
            results.append(data)
    process.stdout.close()


def _read_terminal(terminal: int) -> bytes:
    """Return what was said next; nothing once the other end is closed."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:
        if error.errno == errno.EIO:  # Linux says so instead of an end
            return b""
        raise


def _signal(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


def _kill_if_running(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal(process.pid, signal.SIGKILL)


def _started(process: int) -> str:
    """Return when a process began, which tells it from a later one of the same number; empty where nothing says."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _end_left_over(process: str | None) -> None:
    """End the process group that a dead server left, named as ``NUMBER BEGAN``, where it still is that one."""
    number, _, began = (process or "").partition(" ")
    if number and began and _started(int(number)) == began:
        _signal(int(number), signal.SIGKILL)
        end = time.monotonic() + _PATIENCE_SECONDS
        while _started(int(number)) == began and time.monotonic() < end:
            time.sleep(0.02)
