"""The studio as a person uses it: a headless Chromium, real keys, a folder of photos, a server killed on the way."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from chromium import Page, chromium
from studio_client import draw_coloured, studio_process

from featcache.formats.web.browser import find_chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="a Chromium must be on the PATH, none is"),
]
SEARCH = "input[type=search]"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fill(page: Page, selector: str, text: str) -> None:
    """Put a text into a field, as typing and leaving it does."""
    page.wait(f"!!document.querySelector({json.dumps(selector)})")
    page.run(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
        " field.dispatchEvent(new Event('change')); })()"
    )


def click(page: Page, selector: str) -> None:
    page.wait(f"!!document.querySelector({json.dumps(selector)})")
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def look_for(page: Page, text: str) -> None:
    """Show the images whose names hold `text`, and go to the first."""
    fill(page, SEARCH, text)
    page.wait(f"[...document.querySelectorAll('.tile')].length > 0 && [...document.querySelectorAll('.tile')]"
              f".every((tile) => tile.title.includes({json.dumps(text)}))")  # fmt: skip
    page.run("document.querySelector('.grid').focus()")


def wait_for_labels(page: Page, count: int) -> None:
    """Wait until the page shows that so many images have a label."""
    numbers = "[...document.querySelectorAll('.class:not(.nothing) .number')].map((one) => +one.textContent)"
    page.wait(f"{numbers}.reduce((sum, one) => sum + one, 0) === {count}")


def test_from_a_folder_to_a_bundle_with_the_server_killed_between(tmp_path: Path) -> None:
    photos = draw_coloured(tmp_path / "photos", each=40, flat=True)
    port = str(free_port())
    with chromium() as page:
        with studio_process(tmp_path / "work", "--port", port) as (process, client):
            page.open(f"http://127.0.0.1:{port}/")
            fill(page, ".bring form input", str(photos))
            click(page, ".bring form button")
            page.wait("document.querySelectorAll('.teach:not([hidden]) .tile').length > 5", 120)
            for name in ("red", "green"):
                fill(page, ".adding", name)
                click(page, ".add button")
                page.wait(f"[...document.querySelectorAll('.class .name')].some((one) => one.textContent === '{name}')")
            for key, name in (("1", "red"), ("2", "green")):
                look_for(page, name)
                for _ in range(10):
                    page.key(key)
            page.wait("document.querySelector('.worth .figure').textContent.includes('%')")
            page.wait("document.querySelector('.worth').dataset.revision === '20'")
            wait_for_labels(page, 20)
            assert page.run("document.querySelector('.worth .figure').textContent") == "100.0 %"
            page.key("z", control=True)
            page.wait("document.querySelector('.worth').dataset.revision === '21'")
            wait_for_labels(page, 19)
            process.kill()
        with studio_process(tmp_path / "work", "--port", port) as (_, client):
            page.open(f"http://127.0.0.1:{port}/?again#teach")
            page.wait("document.querySelectorAll('.tile').length > 5")
            wait_for_labels(page, 19)
            look_for(page, "red")
            page.wait("document.querySelector('.tile .chip.guess')?.textContent.startsWith('red')"
                      " || document.querySelectorAll('.tile .chip.guess').length > 0")  # fmt: skip
            page.key("y", control=True)
            page.wait("document.querySelector('.worth').dataset.revision === '22'")
            wait_for_labels(page, 20)
            page.run("location.hash = '#ship'")
            click(page, ".ship button.main")
            page.wait("document.querySelector('.ship select option')?.value === 'bundles/first'", 240)
            page.run(
                "(async () => { const answer = await fetch('/api/datasets/1/samples/79/picture?side=1024');"
                " const data = await answer.blob();"
                " const carried = new DataTransfer(); carried.items.add(new File([data], 'x.jpg'));"
                " document.querySelector('.ship .drop').dispatchEvent("
                "new DragEvent('drop', {dataTransfer: carried, cancelable: true})); })()"
            )
            page.wait("document.querySelector('.answer .figure')?.textContent === 'red'")
            assert client.json("/api/bundles") == [{"kind": "bundle", "name": "bundles/first"}]
        # the server being away is told of, and is no fault of the page
        assert [one for one in page.problems if "ERR_" not in one] == []


def test_a_hundred_thousand_images_scroll_with_few_in_the_page(workspace: Path) -> None:
    """The grid's own part: an order of 100,000, scrolled to its middle and end; only what is in sight is there."""
    with chromium() as page, studio_process(workspace) as (_, client):
        page.open(f"http://127.0.0.1:{client.port}/assets/icon.svg")
        page.open(f"http://127.0.0.1:{client.port}/?grid#teach", width=1280, height=800)
        page.wait("document.querySelectorAll('.tile').length > 5")
        page.run(
            "(async () => { const { Grid } = await import('/assets/grid.js'); const nothing = () => {};"
            " const session = { dataset: { id: 1, classes: [], generation: 'x' }, samples: new Map(),"
            " describe: async () => false };"
            " const on = { onSelect: nothing, onOpen: nothing, onEnter: nothing, onDescribed: nothing };"
            " window.grid = new Grid(session, on);"
            " document.querySelector('.middle').replaceChildren(grid.root);"
            " grid.show(Int32Array.from({ length: 100000 }, (_, place) => place % 90)); })()"
        )
        page.wait("grid.tiles.size > 5")
        assert page.run("grid.tiles.size") < 150
        most = page.run(
            "(() => { let most = 0; for (let step = 1; step <= 50; step++) {"
            " grid.root.scrollTop = step * grid.root.scrollHeight / 51; grid.render();"
            " most = Math.max(most, grid.canvas.childElementCount); } return most; })()"
        )
        assert most < 150  # at every place on the way there
        assert min(page.run("[...grid.tiles.keys()]")) > 90_000
        kept = "[...grid.tiles.values()].filter((tile) => window.before.has(tile)).length"
        page.run("window.before = new Set(grid.tiles.values())")
        page.run("(grid.root.scrollTop += 40, grid.render())")
        assert page.run(kept) > 0.7 * page.run("grid.tiles.size")  # what stays in sight is not made again


def test_a_label_after_one_that_reached_no_server_is_sent(workspace: Path) -> None:
    """One that fails is told of and taken back; it does not stop those behind it."""
    port = str(free_port())
    with chromium() as page:
        with studio_process(workspace, "--port", port) as (process, client):
            (dataset,) = client.json("/api/datasets")
            client.send(f"/api/datasets/{dataset['id']}/classes", name="red")
            page.open(f"http://127.0.0.1:{port}/#teach")
            page.wait("document.querySelectorAll('.tile').length > 5")
            page.run("document.querySelector('.grid').focus()")
            process.kill()
        page.wait("!document.querySelector('.lost').hidden")
        page.key("1")
        page.wait("document.querySelector('#message').className.includes('bad')")
        with studio_process(workspace, "--port", port) as (_, client):
            page.wait("document.querySelector('.lost').hidden", 60)
            wait_for_labels(page, 0)
            page.key("1")
            wait_for_labels(page, 1)
            page.wait(f"fetch('/api/datasets/{dataset['id']}').then((a) => a.json()).then((d) => d.revision === 1)")
