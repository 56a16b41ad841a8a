"""Names and versions: from paths, from NAME=PATH, from a folder of versions; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.errors import InputError, MissingError
from featcache.serve.places import find_places, version_order


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one bundle and one folder of versions; only their manifests are looked for here."""
    for name in ("pets", "many/1", "many/2", "many/10", "a=b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "many" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(*texts: str) -> list[tuple[str, str, str]]:
    return [(place.name, place.version, str(place.path)) for place in find_places(texts)]


def test_places_have_names_and_versions(folder: Path) -> None:
    assert named("pets") == [("pets", "1", "pets")]
    assert named("x=pets", "x/2=pets") == [("x", "1", "pets"), ("x", "2", "pets")]
    assert {version for _, version, _ in named("many")} == {"1", "2", "10"}
    assert {name for name, _, _ in named("zoo=many")} == {"zoo"}
    assert named("a=b") == [("a=b", "1", "a=b")]  # a path that exists is a path


def test_the_name_of_the_current_directory_is_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "pets")
    assert named(".") == [("pets", "1", ".")]


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ([], InputError, "one or more"),
        (["nowhere"], MissingError, "must be a bundle or a folder of some"),
        (["x=nowhere"], MissingError, "'nowhere' is neither"),
        (["many/notes"], MissingError, "is neither"),
        (["=pets"], InputError, "one word each"),
        (["x/=pets"], InputError, "one word each"),
        (["..=pets"], InputError, "one word each"),
        (["a/b/c=pets"], InputError, "one word each"),
        (["a\nb=pets"], InputError, "one word each"),
        (["zoo/3=many"], InputError, "is a folder of 3"),
        (["x=pets", "x/1=many/1"], InputError, "both x/1"),
    ],
)
def test_what_cannot_be_served_is_refused(folder: Path, texts: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        find_places(texts)


def test_versions_are_ordered_by_the_numbers_in_them() -> None:
    assert sorted(["10", "9", "1.2", "1.10", "v2"], key=version_order) == ["1.2", "1.10", "9", "10", "v2"]
