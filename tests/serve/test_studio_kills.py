"""A studio that is killed again and again, at any moment: everything that it has answered is there in its next life."""

from __future__ import annotations

import copy
import http.client
import io
import json
import random
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from studio_client import Client, draw_coloured, open_studio, studio_process

from featcache.cache import open_cache

CLASSES = ("red", "green", "blue")
SMALL = {"weights": "random:0", "engine": "torch"}


class CutError(Exception):
    """The server was killed before it answered."""


def ask(client: Client, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and JSON of an answer; `CutError` where none came."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
    try:
        status, answer, _ = client.request(method, path, data, headers)
    except (OSError, http.client.HTTPException) as error:
        raise CutError from error
    return status, json.loads(answer)


@dataclass
class History:
    """Labels as a person remembers them: how they were before each change, and before each that was taken back."""

    labels: dict[int, str | None] = field(default_factory=dict)
    done: list[dict[int, str | None]] = field(default_factory=list)
    undone: list[dict[int, str | None]] = field(default_factory=list)

    def label(self, samples: list[int], name: str | None) -> None:
        if any(self.labels.get(sample) != name for sample in samples):
            self.done.append(dict(self.labels))
            self.undone.clear()
            self.labels |= dict.fromkeys(samples, name)

    def step(self, direction: str) -> None:
        source, target = (self.done, self.undone) if direction == "undo" else (self.undone, self.done)
        target.append(dict(self.labels))
        self.labels = source.pop()

    @property
    def seen(self) -> tuple[dict[int, str], int, int]:
        """What the studio shows of it: labels, and how many changes can be undone and done again."""
        labels = {sample: name for sample, name in self.labels.items() if name is not None}
        return labels, len(self.done), len(self.undone)


@dataclass
class Labeller:
    """Labels, undoes and redoes; `may_be` is what there is where the change that was cut was done."""

    number: int
    sure: History = field(default_factory=History)
    may_be: History | None = None
    answered: int = 0

    def work(self, client: Client, rng: random.Random) -> None:
        revision = ask(client, "GET", f"/api/datasets/{self.number}")[1]["revision"]
        while True:
            after = copy.deepcopy(self.sure)
            choice = rng.random()
            if (choice < 0.2 and after.done) or (choice < 0.3 and after.undone):
                direction = "undo" if choice < 0.2 and after.done else "redo"
                after.step(direction)
                path, body = direction, {}
            else:
                samples, name = rng.sample(range(90), rng.randint(1, 4)), rng.choice([*CLASSES, None])
                after.label(samples, name)
                path, body = "labels", {"samples": samples, "label": name}
            self.may_be = after
            status, answer = ask(client, "POST", f"/api/datasets/{self.number}/{path}", {**body, "revision": revision})
            assert status == 200, answer
            self.sure, self.may_be, revision = after, None, answer["revision"]
            self.answered += 1

    def check(self, client: Client) -> None:
        dataset = ask(client, "GET", f"/api/datasets/{self.number}")[1]
        shown = ask(client, "GET", f"/api/datasets/{self.number}/labels")[1]["labels"]
        labels = {sample: dataset["classes"][number] for sample, number in enumerate(shown) if number >= 0}
        seen = (labels, dataset["undo"], dataset["redo"])
        if self.may_be is not None and seen == self.may_be.seen:
            self.sure = self.may_be
        assert seen == self.sure.seen
        self.may_be = None

    def check_history(self, client: Client) -> None:
        """Take every change back, and look at the labels each time."""
        revision = ask(client, "GET", f"/api/datasets/{self.number}")[1]["revision"]
        while self.sure.done:
            self.sure.step("undo")
            revision = ask(client, "POST", f"/api/datasets/{self.number}/undo", {"revision": revision})[1]["revision"]
            if len(self.sure.done) % 10 == 0:
                self.check(client)


@dataclass
class Uploader:
    """Sends files, folders of them, and zip files; `coming`: what was cut, and may be there, whole, or not."""

    folder: Path
    sure: dict[str, bytes] = field(default_factory=dict)
    coming: dict[str, bytes] = field(default_factory=dict)
    answered: int = 0

    def work(self, client: Client, rng: random.Random) -> None:
        while True:
            # names come again: a file may take the place of another
            names = [f"{rng.randrange(4)}/{rng.randrange(40)}.png" for _ in range(rng.choice((1, 1, 30)))]
            self.coming = {name: rng.randbytes(rng.randint(1, 60_000)) for name in names}
            if len(names) == 1:
                (data,) = self.coming.values()
                query = urlencode({"path": names[0]})
                status, answer = ask(client, "PUT", f"/api/images/mine/file?{query}", data)
            else:
                packed = io.BytesIO()
                with zipfile.ZipFile(packed, "w") as archive:
                    for name, data in self.coming.items():
                        archive.writestr(name, data)
                status, answer = ask(client, "PUT", "/api/images/mine/zip", packed.getvalue())
            assert (status, answer["files"]) == (200, len(self.coming)), answer
            self.sure |= self.coming
            self.coming = {}
            self.answered += 1

    def check(self, client: Client) -> None:
        found = {file.relative_to(self.folder).as_posix(): file.read_bytes() for file in self.folder.rglob("*.png")}
        for name in found.keys() | self.sure.keys() | self.coming.keys():
            may_be = [place[name] for place in (self.sure, self.coming) if name in place]
            if name in self.sure or name in found:
                assert found[name] in may_be, name
        self.sure, self.coming = found, {}
        assert not [left.name for left in self.folder.parent.glob("*") if left != self.folder]


@dataclass
class Foreman:
    """Begins builds, cancels some, and looks at how they are; no more than `most` wait at once."""

    images: Path
    most: int
    sure: dict[int, dict[str, Any]] = field(default_factory=dict)
    cut: int = 0
    answered: int = 0

    def work(self, client: Client, rng: random.Random) -> None:
        while True:
            self.look(client)
            waiting = [job for job, seen in self.sure.items() if seen["state"] in ("queued", "running")]
            if len(waiting) < self.most:
                self.cut += 1
                body = {"kind": "build", "name": f"cache-{rng.randrange(3)}", "images": str(self.images), **SMALL}
                status, job = ask(client, "POST", "/api/jobs", body)
                assert status == 201, job
                self.cut -= 1
                self.sure[job["id"]] = job
                self.answered += 1
            elif rng.random() < 0.1:
                job = rng.choice(waiting)
                status, answer = ask(client, "POST", f"/api/jobs/{job}/cancel")
                assert status == 409 or (status, answer["state"]) == (200, "cancelled"), answer
                if status == 200:
                    self.sure[job] = answer
                    self.answered += 1

    def look(self, client: Client) -> dict[int, dict[str, Any]]:
        found = {job["id"]: job for job in ask(client, "GET", "/api/jobs")[1]}
        for job, before in self.sure.items():
            now = found[job]
            assert (now["kind"], now["parameters"]) == (before["kind"], before["parameters"])
            if before["state"] not in ("queued", "running"):
                assert (now["state"], now["result"]) == (before["state"], before["result"]), (before, now)
            assert now["state"] != "failed", now
        assert len(found.keys() - self.sure.keys()) <= self.cut
        self.sure |= {job: found[job] for job in self.sure}
        return found

    def check(self, client: Client) -> None:
        self.sure |= self.look(client)  # those whose answer was cut are known from now on
        self.cut = 0


def until_cut(work: Callable[[Client, random.Random], None], client: Client, rng: random.Random,
              errors: list[BaseException]) -> None:  # fmt: skip
    try:
        work(client, rng)
    except CutError:
        pass
    except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
        errors.append(error)


def live_under_kills(workspace: Path, kills: int, *, longest: float, builds: int, finish: bool) -> None:
    """Let three clients work while the server is killed, after at most `longest` seconds of each life.

    `finish`: whether the jobs that are left are waited for.
    """
    rng = random.Random(0)
    draw_coloured(workspace / "drawn", each=2, classes=CLASSES)
    uploads, jobs = Uploader(workspace / "images" / "mine"), Foreman(workspace / "drawn", most=builds)
    with open_studio(workspace) as client:
        labeller = Labeller(client.json("/api/datasets")[0]["id"])
        for name in CLASSES:
            assert client.send(f"/api/datasets/{labeller.number}/classes", name=name)[0] == 200
    clients = (labeller, uploads, jobs)
    errors: list[BaseException] = []
    for life in range(kills):
        with studio_process(workspace) as (process, client):
            for one in clients:
                one.check(client)
            threads = [
                threading.Thread(target=until_cut, args=(one.work, client, random.Random(f"{life} {index}"), errors))
                for index, one in enumerate(clients)
            ]
            for thread in threads:
                thread.start()
            threading.Timer(rng.uniform(0.02, longest), process.kill).start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
    with open_studio(workspace) as client:
        for one in clients:
            one.check(client)
        labeller.check_history(client)
        for job in jobs.sure:
            if not finish:
                client.send(f"/api/jobs/{job}/cancel")
            assert client.finished(job)["state"] in ("done", "cancelled")
        built = {job["parameters"]["name"] for job in client.json("/api/jobs") if job["state"] == "done"}
    for name in built:
        with open_cache(workspace / "caches" / name) as cache:
            assert len(cache.samples()) == 6
    assert all(one.answered >= kills for one in (labeller, uploads))


def test_killed_in_the_middle_of_everything_nothing_that_was_answered_is_lost(workspace: Path) -> None:
    live_under_kills(workspace, 2, longest=0.6, builds=1, finish=False)


@pytest.mark.long
def test_fifty_kills_in_the_middle_of_everything_lose_nothing(workspace: Path) -> None:
    live_under_kills(workspace, 50, longest=4.0, builds=3, finish=True)


def test_a_job_that_was_cancelled_stays_so_after_a_kill(tmp_path: Path) -> None:
    """The answer to the cancel is the last thing the server says: its process may have to be ended by the next one."""
    photos = draw_coloured(tmp_path / "photos", each=2)
    with studio_process(tmp_path / "work") as (process, client):
        status, job = client.send("/api/jobs", kind="build", name="one", images=str(photos), **SMALL)
        assert status == 201
        while client.json(f"/api/jobs/{job['id']}")["state"] == "queued":
            pass
        status, cancelled = client.send(f"/api/jobs/{job['id']}/cancel")
        process.kill()
        assert (status, cancelled["state"]) == (200, "cancelled")
    with open_studio(tmp_path / "work") as client:
        assert client.json(f"/api/jobs/{job['id']}")["state"] == "cancelled"
