"""Opening and borrowing a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake import build

from featcache.cache import FeatureCache, borrow_cache, open_cache
from featcache.errors import MissingError


@pytest.fixture
def cache(photos: Path, tmp_path: Path) -> Path:
    build(photos, tmp_path / "cache")
    return tmp_path / "cache"


def closings(monkeypatch: pytest.MonkeyPatch) -> list[FeatureCache]:
    """Return a list that each cache joins when it is closed."""
    closed: list[FeatureCache] = []
    close = FeatureCache.close

    def noted(cache: FeatureCache) -> None:
        closed.append(cache)
        close(cache)

    monkeypatch.setattr(FeatureCache, "close", noted)
    return closed


def test_borrowed_open_cache_is_itself_and_stays_open(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened it closes it."""
    closed = closings(monkeypatch)
    with open_cache(cache) as opened:
        with borrow_cache(opened) as borrowed:
            assert borrowed is opened
        assert closed == []
    assert closed == [opened]


@pytest.mark.parametrize("form", [str, Path])
def test_borrowed_path_is_opened_and_closed(cache: Path, form: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the block ends with an error."""
    closed = closings(monkeypatch)
    with pytest.raises(KeyError), borrow_cache(form(cache)) as borrowed:
        assert borrowed.num_features == 48
        assert closed == []
        raise KeyError
    assert closed == [borrowed]


def test_borrowing_what_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    """As opening does."""
    with pytest.raises(MissingError, match="featcache build"), borrow_cache(tmp_path / "nothing"):
        pass
