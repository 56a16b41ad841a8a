"""The page of a classifier of texts, in a real browser: it says what predict says, of the same ids."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_web import PAGE, _installed_tools, installed  # noqa: F401 (the fixture)
from text_encoders import SENTENCES, write_encoder

import featcache
from featcache.formats.web.browser import Browser
from featcache.train.options import LinearOptions

pytestmark = pytest.mark.target
ROWS = [(text, "card" if "card" in text or "money" in text else "time") for text in SENTENCES]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed()
    place = tmp_path_factory.mktemp("web_text")
    write_encoder(place / "tiny")
    with open(place / "cards.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    featcache.build_cache(place / "cards.csv", place / "cache", backbone=str(place / "tiny"), engine="torch")
    featcache.train_head(place / "cache", head=LinearOptions(l2=1e-2)).save(place / "head")
    featcache.merge(place / "head", place / "cache", out=place / "model")
    report = featcache.export(place / "model", out=place / "bundle", formats=["web"], cache=place / "cache")
    made = report.formats["web"]
    assert made.executed and made.from_files is not None
    assert (made.from_files["undecoded"], made.from_files["disagreements"]) == (0, 0)
    return place / "bundle"


@pytest.fixture(scope="module")
def browser(bundle: Path) -> Iterator[Browser]:
    with Browser({"web": bundle / "web", "test": PAGE}) as opened:
        yield opened


def test_written_text_gets_pythons_label(bundle: Path, browser: Browser) -> None:
    page, _ = browser.call("test/page.js", "open")
    assert page["state"] == "ready", page
    texts = ["where is my card", "how long does it take to come", "Пример é 🙂 card"]
    for text, expected in zip(texts, featcache.predict(bundle, texts, format="onnx"), strict=True):
        shown, _ = browser.call("test/page.js", "write", text=text)
        assert (shown["state"], shown["label"]) == ("done", expected.label), shown
        assert expected.probability is not None
        assert float(shown["entries"][0]["text"].removesuffix(" %")) == pytest.approx(100 * expected.probability, abs=1)
    emptied, _ = browser.call("test/page.js", "write", text=" ")
    assert emptied["state"] == "ready"


def test_page_of_texts_has_its_tokenizer_and_nothing_of_images(bundle: Path) -> None:
    names = {path.relative_to(bundle / "web").as_posix() for path in (bundle / "web").rglob("*") if path.is_file()}
    assert {"tokenizer.json", "tokenizer/tokenizer.js", "input.js", "model.onnx"} <= names
    assert not {"resize.js", "file.js"} & names
    assert (bundle / "web" / "tokenizer.json").read_bytes() == (bundle / "tokenizer.json").read_bytes()
    assert np.isclose((bundle / "web" / "model.onnx").stat().st_size, (bundle / "model.onnx").stat().st_size)
