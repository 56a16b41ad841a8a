"""The page by keys, by ear and on any screen: every control has a name, nothing is cut off, a lasso needs no mouse."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from chromium import Page, chromium
from studio_client import Client, open_studio

from featcache.formats.web.browser import find_chromium
from featcache.serve.studio.planes import make_map

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="a Chromium must be on the PATH, none is"),
]
CONTROLS = {
    "button", "link", "textbox", "searchbox", "combobox", "checkbox", "radio", "slider", "spinbutton", "listbox",
    "option", "application", "img", "image", "progressbar", "dialog", "group", "navigation",
}  # fmt: skip
VIEWS = {
    "bring": "!!document.querySelector('.bring .drop')",
    "teach": "document.querySelectorAll('.tile .chip.given').length > 3",
    "see": "!!document.querySelector('.see canvas') && document.querySelectorAll('.compare option').length > 1"
    " && !!document.querySelector('.confusion')",
    "ship": "document.querySelectorAll('.formats input').length > 3 && !!document.querySelector('.made li')",
}


@pytest.fixture(scope="module")
def opened(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Client]]:
    """A browser, and a studio whose images are labelled, with its map of neighbours there."""
    import shutil

    workspace = tmp_path_factory.mktemp("views") / "work"
    shutil.copytree(coloured / "caches", workspace / "caches")
    with open_studio(workspace) as client, chromium() as page:
        (entry,) = client.json("/api/datasets")
        number = entry["id"]
        client.label_by_name(number)
        (workspace / "maps").mkdir()
        make_map(workspace / "caches" / "colours", out=workspace / "maps" / f"{number}.safetensors")
        shutil.copytree(coloured / "caches" / "colours", workspace / "caches" / "second")
        page.open(f"http://127.0.0.1:{client.port}/")
        page.wait("document.title.includes('studio')")
        yield page, client


visits = count()


def show(opened: tuple[Page, Client], view: str, *, width: int = 1280, height: int = 800, language: str = "en") -> Page:
    """Open a view of the page anew."""
    page, client = opened
    page.run(f"localStorage.setItem('language', '{language}')")
    visit = f"?{next(visits)}"
    page.open(f"http://127.0.0.1:{client.port}/{visit}#{view}", width=width, height=height)
    sight = f"document.querySelector('main > section:not([hidden])')?.classList.contains('{view}')"
    page.wait(f"location.search === '{visit}' && {sight} && ({VIEWS[view]})")
    return page


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name_to_a_screen_reader(opened: tuple[Page, Client], view: str, language: str) -> None:
    found = show(opened, view, language=language).accessible()
    controls = [one for one in found if one["role"] in CONTROLS or one["focusable"]]
    assert len(controls) > 8
    assert nameless(controls) == []


def nameless(found: list[dict]) -> list[dict]:
    return [one for one in found if not one["name"].strip() and one["role"] != "RootWebArea"]


def test_a_control_without_a_name_is_found(opened: tuple[Page, Client]) -> None:
    """The check above closes: a button without a text, and a field without a label."""
    page = show(opened, "ship")
    page.run(
        "document.querySelector('.ship').append(document.createElement('button'), document.createElement('input'))"
    )
    found = [one for one in page.accessible() if one["role"] in CONTROLS]
    assert sorted(one["role"] for one in nameless(found)) == ["button", "textbox"]


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 800), (3840, 2160)])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_wider_than_the_screen(opened: tuple[Page, Client], view: str, width: int, height: int) -> None:
    """Neither the page scrolls sideways, nor does a button, a select or a field stand beyond the edge."""
    page = show(opened, view, width=width, height=height)
    assert page.run("document.documentElement.scrollWidth") <= width
    sections = "[...document.querySelectorAll('main > section:not([hidden])')]"
    assert page.run(f"{sections}.filter((one) => one.scrollWidth > one.clientWidth + 1).length") == 0
    beyond = page.run(
        "[...document.querySelectorAll('button, select, input')].filter((one) => one.checkVisibility()"
        " && !one.closest('.scroll, .left, .grid')).filter((one) => { const box = one.getBoundingClientRect();"
        f" return box.left < -1 || box.right > {width} + 1; }}).map((one) => one.outerHTML.slice(0, 100))"
    )
    assert beyond == []


def test_tab_reaches_the_head_of_the_page_before_its_parts(opened: tuple[Page, Client]) -> None:
    """From the data set over the four parts, language and theme to the view, in the order in which they are read."""
    page = show(opened, "ship")
    page.run("document.querySelector('.brand').focus()")
    names = []
    focus = "document.activeElement"
    for _ in range(8):
        page.key("Tab")
        names.append(page.run(f"{focus}.getAttribute('aria-label') ?? {focus}.textContent"))
    assert names[0] == "Data set"
    assert names[1:5] == ["Bring", "Teach", "See", "Ship"]
    assert names[5:7] == ["Language", "Light or dark"]
    assert page.run("document.querySelector('.ship').contains(document.activeElement)")


def chosen(page: Page) -> int:
    """Return how many images Teach shows, once it shows a part chosen on the map."""
    page.wait("location.hash === '#teach' && document.querySelector('.filters').textContent.includes('Map')")
    return int(page.run("document.querySelector('.count').textContent").split()[0])


def test_a_lasso_by_mouse_and_a_ring_by_keys_open_images(opened: tuple[Page, Client]) -> None:
    """Around everything: all 90. A ring made large enough from the keyboard alone: all of them as well."""
    page = show(opened, "see")
    page.drag(".map", [(0.005, 0.005), (0.995, 0.005), (0.995, 0.995), (0.005, 0.995)])
    assert chosen(page) == 90
    page = show(opened, "see")
    page.run("[...document.querySelectorAll('.see button')].find((one) => one.textContent === 'Neighbours').click()")
    pressed = "[...document.querySelectorAll('.see [aria-pressed=true]')]"
    page.wait(f"{pressed}.some((one) => one.textContent === 'Neighbours')")
    page.run("document.querySelector('.map').focus()")
    for _ in range(12):
        page.key("+")
    page.key("ArrowLeft")
    page.key("Enter")
    assert chosen(page) == 90


def test_two_backbones_compared_in_the_page(opened: tuple[Page, Client]) -> None:
    """The same cache under another name: equal accuracies, and no image that only one gets right."""
    page = show(opened, "see")
    page.run("[...document.querySelectorAll('.compare button')].find((one) => one.textContent === 'Compare').click()")
    page.wait("document.querySelectorAll('.compared tbody tr').length === 2")
    rows = "[...document.querySelectorAll('.compared tbody tr')]"
    rows = page.run(f"{rows}.map((row) => [...row.cells].map((one) => one.textContent))")
    assert rows[0][1:] == rows[1][1:]
    assert rows[0][1] == "100.0 %" and rows[0][3] == "0"
    assert page.problems == []
