"""Pages: links lead somewhere, paths and names that a page mentions exist, every room has its place on the map."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from test_layers import ROOMS

ROOT = Path(__file__).resolve().parent.parent
MAP = ROOT / "featcache" / "README.md"
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in ("", "cache_store", "featcache/**", "scripts/**")
    for page in ROOT.glob(f"{folder}/*.md" if folder else "*.md")
    if "weights" not in page.parts
)


def sections(text: str, marks: str) -> dict[str, str]:
    """Return ``{heading: text below it}`` of the headings of this depth."""
    parts = re.split(rf"^{marks} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rooms_of_the_map() -> dict[str, str]:
    """Return ``{room: its paragraph}``, in the map's order."""
    return sections(sections(MAP.read_text(encoding="utf-8"), "##")["The rooms"], "###")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    """A link to a file of this repository is relative, and the file is there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_pages_exist(page: str) -> None:
    """A path in backticks that begins at the root of the checkout is one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:featcache|tests|scripts|cache_store)/[\w./-]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_map_has_a_paragraph_for_each_room_in_their_order() -> None:
    """The map and the gate name the same rooms."""
    paragraphs = rooms_of_the_map()
    assert tuple(paragraphs) == ROOMS
    assert all(len(paragraph.split()) >= 10 for paragraph in paragraphs.values())


@pytest.mark.parametrize("room", ROOMS)
def test_names_on_the_map_are_in_their_room(room: str) -> None:
    """A name in backticks in a room's paragraph stands in the sources of that room, or of the errors it builds on."""
    place = ROOT / "featcache" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    words = set(re.findall(r"\w+", "\n".join(file.read_text(encoding="utf-8") for file in files)))
    names = re.findall(r"`([A-Za-z_]\w*)`", rooms_of_the_map()[room])
    assert [name for name in names if name not in words] == []


@pytest.mark.parametrize("room", ROOMS)
def test_the_map_links_to_the_page_of_each_room(room: str) -> None:
    """A room's own page, where it has one, is found from the map."""
    if (ROOT / "featcache" / room / "README.md").exists():
        assert f"]({room}/README.md)" in MAP.read_text(encoding="utf-8")


def test_each_law_says_where_it_is_tested() -> None:
    """Seven laws, each with test files; that these exist is tested above."""
    laws = re.split(r"^\d\. ", sections(MAP.read_text(encoding="utf-8"), "##")["The laws"], flags=re.MULTILINE)[1:]
    assert len(laws) == 7
    assert all(re.search(r"`tests/\S+\.py`", law) for law in laws)


def test_each_extension_point_names_its_interface_contract_and_example() -> None:
    """A contract is an importable class of tests, and the example derives from it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    points = sections(sections(text, "##")["The four extension points"], "###")
    assert len(points) == 4
    for point in points.values():
        contract, example = re.search(r"Contract: `([\w.]+)`. Example: `([\w./]+)`", point).groups()
        module, _, name = contract.rpartition(".")
        laws = inspect.getmembers(getattr(importlib.import_module(module), name), inspect.isfunction)
        assert any(law.startswith("test_") for law, _ in laws)
        assert name in (ROOT / example).read_text(encoding="utf-8")
        assert f"({name}):" in point


def test_names_of_the_extension_points_exist() -> None:
    """Interfaces and registering functions are where the page says."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, room in (
        ("register_head", "heads"), ("register_engine", "engines"), ("register_target", "formats"),
        ("FeatureStore", "store"), ("StoreReader", "store"), ("StoreWriter", "store"),
        ("Head", "heads"), ("Engine", "engines"), ("Target", "formats"),
    ):  # fmt: skip
        assert f"`{name}`" in text
        assert hasattr(importlib.import_module(f"featcache.{room}"), name)
