"""The penalty of the head of the moment: chosen while labels go on, and in use once it is."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from studio_client import open_studio

from featcache.serve.studio import desk
from featcache.serve.studio.penalty import Choice


def test_labels_are_answered_while_the_penalty_is_being_chosen(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice hangs: the next label's head comes all the same. Then it ends, and the head has that penalty."""
    begun, may_end = threading.Event(), threading.Event()

    def choose(*arguments: object, **more: object) -> Choice:
        begun.set()
        assert may_end.wait(30)
        return Choice(0.25, "folds", 1000)

    monkeypatch.setattr(desk, "choose_penalty", choose)
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        number = entry["id"]
        samples = client.json(f"/api/datasets/{number}/samples?split=train")["samples"]
        for name in ("one", "two"):
            client.send(f"/api/datasets/{number}/classes", name=name)
        client.label(number, samples[:10], "one")
        changed = client.label(number, samples[-10:], "two")
        first = client.head(number, changed["revision"])
        assert (first["labels"], first["l2"], first["l2_by"]) == (20, 0.01, None)
        assert begun.wait(20)
        changed = client.label(number, samples[10:11], "one")
        second = client.head(number, changed["revision"])
        assert (second["labels"], second["l2"]) == (21, 0.01)
        may_end.set()
        for _ in range(1000):
            chosen = client.json(f"/api/datasets/{number}/head")
            if chosen["l2"] != 0.01:
                break
            threading.Event().wait(0.01)
        assert (chosen["l2"], chosen["l2_by"], chosen["revision"]) == (0.25, "folds", changed["revision"])


def test_a_head_that_was_cut_short_is_gone_on_with_in_a_pause(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer to the labels comes after one pass; without another label, the end of it follows by itself."""
    monkeypatch.setattr("featcache.serve.studio.desk.quick_passes", lambda images: 1)
    with open_studio(workspace) as client:
        (entry,) = client.json("/api/datasets")
        path = f"/api/datasets/{entry['id']}"
        for number, name in enumerate(("red", "green", "blue")):
            client.send(f"{path}/classes", name=name)
            client.label(entry["id"], [3 * number, 3 * number + 1], name)
        head = client.json(f"{path}/head?revision=3&seconds=20")
        assert not head["settled"]
        end = time.monotonic() + 60
        while not head["settled"]:
            assert time.monotonic() < end
            head = client.json(f"{path}/head")
        assert head["revision"] == 3
