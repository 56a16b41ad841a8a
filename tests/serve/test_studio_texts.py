"""The studio with texts: read in a list, labelled, searched, tried; and what other input kinds are told."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import Page, chromium
from studio_client import Client, coloured_cache, open_studio
from text_encoders import label_of
from typer.testing import CliRunner

from featcache import recipe
from featcache.cache import open_cache
from featcache.cli import app
from featcache.datasets.text_scan import scan_texts
from featcache.extract.inputs.texts import TextInput
from featcache.formats.web.browser import find_chromium
from featcache.serve.studio.documents import BuildRequest
from featcache.serve.studio.steps import build_steps, ship_steps
from featcache.serve.studio.words import MOST, Words
from featcache.serve.studio.workspace import Workspace

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="a Chromium must be on the PATH, none is")


@pytest.fixture
def workspace(cards: Path, tmp_path: Path) -> Path:
    """A workspace with the cache and the bundle of texts, and the table where it can be changed."""
    place = tmp_path / "work"
    shutil.copytree(cards / "cache", place / "caches" / "cards")
    shutil.copytree(cards / "bundle", place / "bundles" / "cards")
    return place


@pytest.fixture
def client(workspace: Path) -> Iterator[Client]:
    with opened(workspace) as started:
        yield started


@contextmanager
def opened(workspace: Path) -> Iterator[Client]:
    """Give the client of a studio whose data set of texts has the number 1."""
    with open_studio(workspace) as started:
        assert started.json("/api/datasets")[0]["id"] == 1
        yield started


def described(client: Client, samples: list[int]) -> list[dict[str, Any]]:
    status, found = client.send("/api/datasets/1/samples", samples=samples)
    assert status == 200
    return list(found)


def take_labels_away(client: Client) -> list[dict[str, Any]]:
    """Return all samples, none of which has a label any more."""
    samples = client.json("/api/datasets/1/samples")["samples"]
    client.label(1, samples, None)
    return described(client, samples)


def test_a_data_set_says_that_it_holds_texts_and_shows_them(client: Client) -> None:
    (entry,) = client.json("/api/datasets")
    assert (entry["input"], entry["shown"]) == ("text", "text")
    assert client.json("/api/datasets/1")["shown"] == "text"
    (sample,) = described(client, [0])
    assert (sample["path"], sample["text"], sample["failure"]) == ("cards.csv:2", "the now", None)
    status, data, headers = client.get_with_headers("/api/datasets/1/samples/0/picture?side=1024")
    assert (status, data, headers["content-type"]) == (200, b"the now", "text/plain; charset=utf-8")


def test_search_finds_words_of_texts_in_any_case(client: Client) -> None:
    found = client.json("/api/datasets/1/samples?search=MONEY%20please")["samples"]
    texts = [sample["text"] for sample in described(client, found)]
    assert len(texts) > 3 and all("money please" in text for text in texts)
    assert client.json("/api/datasets/1/samples?search=cards.csv")["samples"] == []


def test_labels_train_a_head_whose_predictions_follow(client: Client) -> None:
    """Those of train are labelled, and most of the others are right; likeness and undo go as with images."""
    samples = take_labels_away(client)
    train = [one for one in samples if one["split"] == "train"]
    for name in ("money", "time"):
        chosen = [one["id"] for one in train if label_of(one["text"]) == name]
        changed = client.label(1, chosen, name)
    assert client.head(1, changed["revision"])["labels"] == len(train)
    after = described(client, [one["id"] for one in samples if one["split"] != "train"])
    right = [one["predicted"] == label_of(one["text"]) for one in after]
    assert sum(right) > 0.8 * len(right)
    order = client.json("/api/datasets/1/samples?order=similarity&similar_to=0")["samples"]
    assert order[0] == 0
    status, _ = client.send("/api/datasets/1/undo", revision=changed["revision"])
    assert status == 200 and described(client, [chosen[0]])[0]["label"] is None


def test_labels_as_a_table_are_a_data_set_again(client: Client, tmp_path: Path) -> None:
    status, table = client.get("/api/datasets/1/labels.csv")
    assert status == 200
    (tmp_path / "again.csv").write_bytes(table)
    listing = scan_texts(tmp_path / "again.csv")
    assert (listing.classes, len(listing)) == (("money", "time"), client.json("/api/datasets/1")["images"])


def test_a_text_that_is_gone_says_why_and_the_others_are_shown(workspace: Path, cards: Path, tmp_path: Path) -> None:
    """The table is edited after the build: one row says something else by now."""
    moved = tmp_path / "cards.csv"
    moved.write_text((cards / "cards.csv").read_text().replace("the now,", "the then,"), encoding="utf-8")
    with open_cache(workspace / "caches" / "cards") as cache:
        samples = cache.samples("cards")
        listing = dataclasses.replace(samples.listing, root=str(tmp_path))
        cache.replace_samples(dataclasses.replace(samples, listing=listing))
    with opened(workspace) as client:
        first, second = described(client, [0, 1])
        assert first["text"] is None and "has changed" in first["failure"]
        assert second["text"] == "the today"
        assert client.get("/api/datasets/1/samples/0/picture")[0] == 415
        assert 0 not in client.json("/api/datasets/1/samples?search=the")["samples"]


def test_long_texts_are_cut_for_the_list() -> None:
    words = Words(TextInput(), lambda sample: b"word " * 2000, 1)
    assert len(words.of(0)) == MOST


def test_a_bundle_of_texts_is_tried_with_a_text(client: Client) -> None:
    assert client.json("/api/web?bundle=bundles/cards") == {"input": "text", "shown": "text", "address": None}
    status, answer = client.post("/api/classify?bundle=bundles/cards", b"where is my card")
    assert status == 200 and answer["label"] in ("money", "time")
    for data in (b"", b"caf\xe9"):
        status, answer = client.post("/api/classify?bundle=bundles/cards", data)
        assert (status, list(answer)) == (400, ["error"])


def test_a_dropped_table_is_built_by_an_encoder(client: Client, workspace: Path, cards: Path) -> None:
    """The columns are named, as they do not say what they are; what the job would run is run here."""
    table = b"remark,kind\n" + b"".join(b"where is it %d,a\n" % number for number in range(6))
    assert client.request("PUT", "/api/images/more/file?path=more.csv", table)[0] == 200
    asked = {"input": "text", "text_column": "remark", "label_column": "kind", "backbone": str(cards / "tiny")}
    parameters = BuildRequest(kind="build", name="more", **asked).model_dump(exclude={"kind"})
    (step,) = build_steps(Workspace(workspace), parameters)
    done = CliRunner().invoke(app, list(step.arguments))
    assert done.exit_code == 0, done.output
    (entry,) = [one for one in client.json("/api/datasets") if one["name"] == "more"]
    assert client.json(f"/api/datasets/{entry['id']}")["classes"] == ["a"]


def test_a_smaller_bundle_of_texts_has_integer_weights(workspace: Path) -> None:
    """Networks of texts are not pruned, so nothing is searched for."""
    asked = {"cache": "caches/cards", "labelled": "x", "name": "x", "formats": ["onnx"], "compress": True}
    steps = ship_steps(Workspace(workspace), {**asked, "input": "text"})
    assert [step.name for step in steps] == ["train", "merge", "quantize", "export"]
    assert steps[2].arguments[2:4] == ("--precision", "int8-dynamic")


def test_an_input_kind_that_nobody_can_look_at_is_refused_by_name(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a program's own that says no way to be seen; one that this process does not know is left out."""
    monkeypatch.setattr(TextInput, "shown", None)
    (entry,) = client.json("/api/datasets")
    assert entry["shown"] is None
    status, data = client.get("/api/datasets/1")
    assert status == 400
    assert "shows pictures and texts, the cache 'caches/cards' holds the input kind 'text'" in json.loads(data)["error"]
    monkeypatch.delitem(recipe._kinds, "text")
    assert client.json("/api/datasets") == []


def typed(page: Page, selector: str, text: str) -> None:
    page.run(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
        " field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); })()"
    )


def fits(page: Page) -> bool:
    return bool(page.run("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.slow
@needs_chromium
def test_texts_are_labelled_by_keys_and_the_page_speaks_of_them(workspace: Path) -> None:
    """Two classes by key until predictions show; a text enlarged, pointed at on the map, tried; then images."""
    coloured_cache(workspace, each=4, name="zcolours")
    with opened(workspace) as client, chromium() as page:
        take_labels_away(client)
        page.open(f"http://127.0.0.1:{client.port}/#teach", width=1280, height=800)
        page.wait("document.querySelector('.tile.words .said')?.textContent === 'the now'")
        assert page.run("document.querySelector('.count').textContent").endswith(" texts")
        for key, word in (("1", "money"), ("2", "time")):
            search = "money" if word == "money" else "how"
            typed(page, "input[type=search]", search)
            said = "[...document.querySelectorAll('.tile .said')]"
            page.wait(f"{said}.length > 3 && {said}.every((one) => one.textContent.includes('{search}'))")
            page.run("document.querySelector('.grid').focus()")
            for _ in range(6):
                page.key(key)
        typed(page, "input[type=search]", "")
        page.wait("document.querySelectorAll('.tile .chip.guess').length > 2")
        page.wait("document.querySelector('.worth').dataset.revision === '13'")
        # at once: with the next head's numbers, what is beside the list is drawn anew
        page.wait("(() => { const one = document.querySelector('.detail .said');"
                  " if (one?.textContent !== 'the now') return false; one.click(); return true; })()")  # fmt: skip
        page.wait("document.querySelector('dialog .said')?.textContent === 'the now'")
        page.key("Escape")
        page.wait("!document.querySelector('dialog')")
        page.key("z", control=True)
        page.wait("document.querySelector('.worth').dataset.revision === '14'")

        page.run("location.hash = '#see'")
        page.wait("!!document.querySelector('.see canvas')")
        page.run("document.querySelector('.see canvas').focus()")
        page.key("ArrowRight")
        page.wait("document.querySelector('.pointed .said')?.textContent.length > 2")

        page.run("location.hash = '#ship'")
        page.wait("document.querySelector('.ship textarea')?.checkVisibility()")
        typed(page, ".ship textarea", "where is my money")
        page.wait("['money', 'time'].includes(document.querySelector('.answer .figure')?.textContent)")
        assert not page.run("document.querySelector('.ship .drop').checkVisibility()")
        page.run("location.hash = '#bring'")
        page.wait("[...document.querySelectorAll('.bring .drop')].filter((one) => one.checkVisibility()).length === 1")

        for view in ("teach", "see", "ship", "bring"):
            page.open(f"http://127.0.0.1:{client.port}/?{view}#{view}", width=400, height=800)
            page.wait(f"document.querySelector('main > section:not([hidden])')?.classList.contains('{view}')"
                      f" && location.search === '?{view}'")  # fmt: skip
            page.wait(f"document.querySelector('.count').textContent.endsWith('texts') && {json.dumps(fits(page))}")

        page.run("(() => { const picker = document.querySelector('.dataset'); picker.selectedIndex = 1;"
                 " picker.dispatchEvent(new Event('change')); })()")  # fmt: skip
        page.wait("document.querySelector('.count')?.textContent.endsWith(' images')")
        assert page.run("document.querySelectorAll('.tile.words').length") == 0
        assert page.problems == []
