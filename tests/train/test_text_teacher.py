"""A teacher of texts: its cache and its head teach a head on another encoder's cache; a network it cannot teach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_encoders import CARDS, build_text_cache, write_encoder, write_table

import featcache
from featcache.cache import open_cache
from featcache.errors import InputError
from featcache.heads.io import load_head
from featcache.train.options import DistillationOptions, LinearOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of the same texts by two encoders, and the head of one."""
    place = tmp_path_factory.mktemp("teacher")
    table = write_table(place / "cards.csv")
    build_text_cache(table, place / "large", encoder=write_encoder(place / "one"))
    first = {"pooling_mode_cls_token": True}
    build_text_cache(table, place / "small", encoder=write_encoder(place / "two", pooling=first))
    featcache.train_head(place / "large", head=LinearOptions(l2=1e-2)).save(place / "head")
    return place


def test_a_head_learns_what_a_teacher_of_texts_says(folder: Path) -> None:
    """With its answers alone, which are softer than labels, the student comes nearer to them than labels bring it."""
    taught, plain = (
        featcache.train_head(
            folder / "small",
            head=LinearOptions(l2=1e-3),
            distillation=DistillationOptions(
                teacher=folder / "large", teacher_head=folder / "head", alpha=alpha, temperature=1.0
            ),
        )
        for alpha in (1.0, 0.0)
    )
    assert taught.details["teacher"]["model"] == "one" and taught.details["teacher"]["head"] == "given"
    with open_cache(folder / "large") as large, open_cache(folder / "small") as small:
        rows = large.select(split="train").rows
        wanted = load_head(folder / "head").predict_proba(large.gather(rows))
        given = small.gather(small.select(split="train").rows)

    def distance(head: featcache.Head) -> float:
        return float(np.abs(head.predict_proba(given) - wanted).mean())

    assert distance(taught.head) < 0.9 * distance(plain.head)


def test_a_teacher_of_other_texts_is_refused(folder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "others.csv", [(f"{text} 2", label) for text, label in CARDS[::3]])
    build_text_cache(table, tmp_path / "others", encoder=folder / "one")
    with pytest.raises(InputError, match=r"must hold a row of every training image, \d+ of \d+ are missing"):
        featcache.train_head(folder / "small", distillation=DistillationOptions(teacher=tmp_path / "others"))


def test_a_network_of_images_has_no_teacher_of_texts(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must have a teacher of images, .* 'text': train --teacher distils"):
        featcache.distill(folder / "cards.csv", folder / "large", student="test_resnet", out=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
