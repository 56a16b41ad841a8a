"""Labels in the studio: changes, undo and redo, windows that meet, kills."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from studio_client import Client, open_studio

from featcache.cache import open_cache
from featcache.errors import CorruptError, FormatError, LockedError
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.database import Database
from featcache.serve.studio.labels import LabelStore


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(Database(tmp_path / "studio.sqlite"), "caches/a", "a")


A, B = b"a" * 32, b"b" * 32


def test_undo_and_redo_go_to_the_ends_and_back(store: LabelStore) -> None:
    """Five changes, all taken back, all done again; a new change after an undo ends what could be done again."""
    for revision, label in enumerate("vwxyz"):
        store.change([(A, "uvwxy"[revision] if revision else None, label)], revision=revision)
    for step in range(5):
        history, _ = store.undo(revision=5 + step)
    assert (history.undo, history.redo, store.labels()) == (0, 5, {A: None})
    for step in range(5):
        history, _ = store.redo(revision=10 + step)
    assert (history.undo, history.redo, store.labels()) == (5, 0, {A: "z"})
    store.undo(revision=15)
    history = store.change([(B, None, "v")], revision=16)
    assert (history.undo, history.redo) == (5, 0)
    assert store.labels() == {A: "y", B: "v"}
    with pytest.raises(RefusedError, match="there is none"):
        store.redo(revision=17)


def test_a_change_of_an_image_that_another_window_changed_is_refused(store: LabelStore) -> None:
    """Another image may be changed from the old revision; the same one may not, and nothing is lost."""
    store.change([(A, None, "x")], revision=0)
    store.change([(B, None, "y")], revision=0)
    with pytest.raises(RefusedError) as refused:
        store.change([(A, None, "z")], revision=0)
    assert refused.value.status == 409
    assert store.labels() == {A: "x", B: "y"}
    with pytest.raises(RefusedError, match="look again"):
        store.undo(revision=1)


def test_a_second_studio_on_a_workspace_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "studio.sqlite")
    with pytest.raises(LockedError, match="another has it open"):
        Database(tmp_path / "studio.sqlite")
    database.close()
    Database(tmp_path / "studio.sqlite").close()


def test_another_database_or_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database" * 100)
    with pytest.raises(CorruptError):
        Database(tmp_path / "text.sqlite")
    database = Database(tmp_path / "studio.sqlite")
    with database.transaction() as write:
        write("PRAGMA user_version=99")
    database.close()
    with pytest.raises(FormatError, match="version 99"):
        Database(tmp_path / "studio.sqlite")


def test_labels_are_as_they_were_after_the_studio_is_opened_again(workspace: Path) -> None:
    with open_studio(workspace) as client:
        client.send("/api/datasets/1", name="")
        (entry,) = client.json("/api/datasets")
        number = entry["id"]
        for name in ("red", "green"):
            assert client.send(f"/api/datasets/{number}/classes", name=name)[0] == 200
        client.label(number, [0, 1, 2], "red")
        client.label(number, [2, 3], "green")
    with open_studio(workspace) as client:
        labels = client.json(f"/api/datasets/{number}/labels")
        assert labels["labels"][:5] == [0, 0, 1, 1, -1]
        status, answer = client.send(f"/api/datasets/{number}/undo", revision=labels["revision"])
        assert (status, answer["changed"], answer["undo"], answer["redo"]) == (200, 2, 1, 1)
        assert client.json(f"/api/datasets/{number}/labels")["labels"][:5] == [0, 0, 0, -1, -1]


def test_equal_images_have_one_label(tmp_path: Path) -> None:
    from studio_client import coloured_cache, draw_coloured

    images = draw_coloured(tmp_path / "images" / "colours", each=6, flat=True)
    shutil.copy(images / "red-001.png", images / "twin.png")
    coloured_cache(tmp_path, each=6)
    with open_studio(tmp_path) as client:
        number = client.json("/api/datasets")[0]["id"]
        order = client.json(f"/api/datasets/{number}/samples")["samples"]
        paths = [one["path"] for one in client.send(f"/api/datasets/{number}/samples", samples=order)[1]]
        client.send(f"/api/datasets/{number}/classes", name="red")
        client.label(number, [paths.index("twin.png")], "red")
        assert client.json(f"/api/datasets/{number}/labels")["labels"][paths.index("red-001.png")] == 0
        groups = client.json(f"/api/datasets/{number}/duplicates?likeness=1")["groups"]
        assert [paths.index("red-001.png"), paths.index("twin.png")] in groups


def test_two_windows_at_once_never_overwrite_each_other(workspace: Path) -> None:
    """Two clients label the same ten images without pause: every change that was answered is in the history."""
    with open_studio(workspace) as client:
        number = client.json("/api/datasets")[0]["id"]
        for name in ("red", "green"):
            client.send(f"/api/datasets/{number}/classes", name=name)
        given: list[int] = []
        refused: list[int] = []

        def work(name: str) -> None:
            mine = Client(client.port)
            revision = mine.json(f"/api/datasets/{number}")["revision"]
            for turn in range(30):
                body = {"samples": [turn % 10], "label": name, "revision": revision}
                status, answer = mine.send(f"/api/datasets/{number}/labels", **body)
                if status == 200:
                    given.append(answer["changed"])
                    revision = answer["revision"]
                else:
                    assert status == 409, answer
                    refused.append(turn)
                    revision = mine.json(f"/api/datasets/{number}")["revision"]

        threads = [threading.Thread(target=work, args=(name,)) for name in ("red", "green")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.json(f"/api/datasets/{number}")["revision"] == sum(given)
        assert client.json(f"/api/datasets/{number}")["undo"] == sum(given)


def test_the_labels_that_are_shipped_are_a_data_set_of_the_cache(workspace: Path) -> None:
    with open_studio(workspace) as client:
        number = client.json("/api/datasets")[0]["id"]
        for name in ("unused", "red"):
            client.send(f"/api/datasets/{number}/classes", name=name)
        client.label(number, [5], "red")
        status, answer = client.send("/api/jobs", kind="ship", name="first", dataset=number)
        assert status == 201, answer
        client.send(f"/api/jobs/{answer['id']}/cancel")
        client.finished(answer["id"])
        assert [one["name"] for one in client.json("/api/datasets")] == ["colours"]
        table = client.get(f"/api/datasets/{number}/labels.csv")[1].decode().splitlines()
        assert (table[0], len(table), sum(",red," in line for line in table)) == ("path,label,split", 91, 1)
    with open_cache(workspace / "caches" / "colours") as cache:
        labelled, plain = cache.samples("first-labelled"), cache.samples("colours")
        assert labelled.classes == ("red",)
        assert labelled.labels.tolist() == [0 if index == 5 else -1 for index in range(90)]
        assert (labelled.splits == plain.splits).all() and plain.classes == ()
