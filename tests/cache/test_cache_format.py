"""A cache's files: golden caches of every version, damage to each file, and reading them without this package."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, result
from fake import fake_extractor

from featcache.cache import open_cache
from featcache.cache.manifest import CACHE_VERSION, UNCHECKED_VERSION
from featcache.cache.table import COLUMNS, write_sample_table
from featcache.datasets.scan import scan
from featcache.errors import CorruptError, DependencyError, ExistsError, FormatError, InputError
from featcache.extract.build import build_cache
from featcache.store import StoreSettings, create_store, open_store
from featcache.system.json import with_checksum
from featcache.verification import verify

GOLDEN = Path(__file__).parent / "golden_caches"
README = Path(__file__).parent.parent.parent / "cache_store" / "README.md"


@pytest.mark.parametrize("name", [f"lmdb-v{CACHE_VERSION}", f"zarr-v{CACHE_VERSION}", f"zarr-v{UNCHECKED_VERSION}"])
def test_every_version_that_is_read_has_its_golden_cache(name: str) -> None:
    """This version's of both stores, and one that a program of the first version wrote."""
    manifest = json.loads((GOLDEN / name / "manifest.json").read_text(encoding="utf-8"))
    assert f"-v{manifest['version']}" in name
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()) < 200_000


@pytest.mark.parametrize("name", sorted(place.name for place in GOLDEN.iterdir() if place.is_dir()))
def test_a_golden_cache_of_any_version_is_read_and_extended(name: str, tmp_path: Path) -> None:
    """Rows, samples and remembered requests; and its rows can be dropped, which writes the store anew."""
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    shutil.copytree(GOLDEN / name, tmp_path / name)
    with open_cache(tmp_path / name) as cache:
        assert cache.verify().problems == ()
        assert [known["request"]["backbone"] for known in cache.known_requests()] == ["mobilenetv2_100"]
        cache.remember_request({"request": {"backbone": "fake"}})
        assert len(cache.known_requests()) == 2
        assert cache.verify().problems == ()
        assert cache.content_digest() == expected["content_digest"]
        assert {name: len(cache.samples(name)) for name in cache.datasets} == expected["samples"]
        assert {name: len(cache.samples(name).failures) for name in cache.datasets} == expected["failures"]
        features, labels = cache.numpy(dataset="photos", output=["features", "map"], view=[0, 1])
        assert labels.tolist() == expected["labels"]
        assert float(features.astype(np.float64).sum()) == pytest.approx(expected["feature_sum"], abs=1e-9)
        keys = cache.samples("photos").digests[:3]
        with cache.store.writer() as writer:
            assert writer.drop(keys) == 3
            writer.commit()


@pytest.mark.parametrize("kind", ["lmdb", "zarr"])
def test_rows_of_a_golden_cache_written_again_are_the_same_bytes(kind: str, tmp_path: Path) -> None:
    """What is written today is what was written when the golden cache was made."""
    golden = GOLDEN / f"{kind}-v{CACHE_VERSION}" / "store"
    shutil.copytree(golden, tmp_path / "golden")
    with open_store(tmp_path / "golden") as old, old.reader() as reader:
        keys, columns = np.array(reader.keys()), old.columns
        values = {column.name: reader.read(column.name, 0, len(keys)) for column in columns}
    settings = StoreSettings(block_rows=8, key_block_rows=8)
    new = create_store(tmp_path / "new", kind=kind, columns=columns, settings=settings)
    with new.writer() as writer:
        writer.append(keys, values)
        writer.commit()
    files = [file.relative_to(golden) for file in golden.rglob("*") if file.is_file()]
    assert len(files) == {"lmdb": 1, "zarr": 20}[kind]
    for file in files:
        assert (tmp_path / "new" / file).read_bytes() == (golden / file).read_bytes(), file


@pytest.fixture(params=["lmdb", "zarr"])
def cache(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Path:
    (photos / "cat" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    build_cache(photos, tmp_path / "cache", store=request.param, extractor=fake_extractor())
    return tmp_path / "cache"


def small_files(cache: Path) -> list[Path]:
    return [cache / "manifest.json", cache / "manifest-copy.json", cache / "requests.json",
            cache / "samples" / "photos.safetensors"]  # fmt: skip


def test_every_flipped_bit_is_named_and_mended(cache: Path, photos: Path) -> None:
    digest = open_cache(cache).content_digest()
    random = np.random.default_rng(3)
    for trial in range(40):
        file = small_files(cache)[trial % 4]
        if not file.exists():  # a memo: what a repair dropped comes back when there is something to remember
            with open_cache(cache) as opened:
                opened.remember_request({"request": {"backbone": "fake"}})
        data = file.read_bytes()
        bit = int(random.integers(8 * len(data)))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        found = verify(cache)
        assert not found.ok
        assert file.name in " ".join(found.problems), (bit, found.problems)
        assert not verify(cache, repair=True).ok
        report = build_cache(photos, cache, extractor=fake_extractor())
        assert (report.extracted, report.reused, report.failed) == (0, 24, 1)
        assert verify(cache).ok
    assert open_cache(cache).content_digest() == digest


def test_a_missing_file_is_named_and_mended(cache: Path, photos: Path) -> None:
    for file in small_files(cache):
        file.unlink()
        mended = verify(cache, repair=True)
        assert mended.ok == (file.name in ("requests.json", "photos.safetensors")), file
        assert build_cache(photos, cache, extractor=fake_extractor()).extracted == 0
        assert verify(cache).ok


def test_both_manifests_damaged_is_said(cache: Path) -> None:
    for file in small_files(cache)[:2]:
        file.write_bytes(file.read_bytes().replace(b'"pillow"', b'"fast"  '))
    assert "checksum" in verify(cache).problems[0]
    with pytest.raises(CorruptError, match="checksum"):
        verify(cache, repair=True)
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        open_cache(cache)


def test_a_newer_format_is_refused_by_name(cache: Path, photos: Path) -> None:
    """A file that is intact and says version 9."""
    values = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))
    del values["crc32c"]
    text = json.dumps(with_checksum({**values, "version": 9}))
    for name in ("manifest.json", "manifest-copy.json"):
        (cache / name).write_text(text)
    for refused in (lambda: open_cache(cache), lambda: build_cache(photos, cache), lambda: verify(cache)):
        with pytest.raises(FormatError, match="version 2, got 9"):
            refused()


def test_a_manifest_without_checksum_is_damaged(cache: Path) -> None:
    """Only the first version had none."""
    file = cache / "manifest.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    del values["crc32c"]
    file.write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="checksum"):
        open_cache(cache)


def test_what_the_readme_says_is_enough_to_read_everything(cache: Path, tmp_path: Path) -> None:
    """The blocks of cache_store/README.md run without this package and find rows and samples."""
    kind = json.loads((cache / "manifest.json").read_text(encoding="utf-8"))["store"]
    blocks = [block.split("```")[0] for block in README.read_text(encoding="utf-8").split("```python\n")[1:]]
    rows = next(block for block in blocks if f"import {kind}" in block)
    samples = next(block for block in blocks if "safetensors" in block)
    end = """
import sys
assert not any(name.startswith("featcache") for name in sys.modules)
place = {key.tobytes(): row for row, key in enumerate(keys)}
found = [place.get(digest.tobytes(), -1) for digest in arrays["digests"]]
print(json.dumps([header["classes"], paths, arrays["labels"].tolist(), arrays["splits"].tolist(), found,
                  columns["features"].astype(float).sum().item()]))
"""
    code = f"STORE, CACHE = {str(cache / 'store')!r}, {str(cache)!r}\n" + rows + samples + end
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    classes, paths, labels, splits, found, total = json.loads(done.stdout)
    with open_cache(cache) as opened, opened.reader() as reader:
        mine = opened.samples()
        assert (tuple(classes), paths, labels) == (mine.classes, mine.paths, mine.labels.tolist())
        assert splits == mine.splits.tolist()
        assert found == reader.find(mine.digests).tolist()
        assert total == pytest.approx(reader.read("features", 0, 24).astype(float).sum())


def test_samples_as_a_table(cache: Path, photos: Path, tmp_path: Path) -> None:
    with open_cache(cache) as opened:
        assert write_sample_table(opened, tmp_path / "s.csv") == 25
        with pytest.raises(ExistsError):
            write_sample_table(opened, tmp_path / "s.csv")
        with pytest.raises(InputError, match=r"\.csv or \.parquet"):
            write_sample_table(opened, tmp_path / "s.xlsx")
        samples = opened.samples()
    with open(tmp_path / "s.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert [line["path"] for line in table] == samples.paths
    torn = table[samples.paths.index("cat/torn.jpg")]
    assert torn["row"] == "" and torn["failure"]
    assert {line["sha256"] for line in table} == {digest.tobytes().hex() for digest in samples.digests}
    shutil.copy(tmp_path / "s.csv", photos / "samples.csv")
    again = scan(photos / "samples.csv")  # the table is a data set again, with the very same splits
    assert (again.paths, again.labels.tolist()) == (samples.paths, samples.labels.tolist())
    assert again.given_splits.tolist() == samples.splits.tolist()


def test_parquet_is_written_or_its_package_named(cache: Path, tmp_path: Path) -> None:
    with open_cache(cache) as opened:
        try:
            from pyarrow import parquet
        except ImportError:
            with pytest.raises(DependencyError, match=r"pip install featcache\[parquet\]"):
                write_sample_table(opened, tmp_path / "s.parquet")
            assert not (tmp_path / "s.parquet").exists()
            return
        write_sample_table(opened, tmp_path / "s.parquet")
        table = parquet.read_table(tmp_path / "s.parquet").to_pydict()
        assert table["path"] == opened.samples().paths


def test_diff_names_every_differing_field(photos: Path, tmp_path: Path) -> None:
    changes = {
        "model": "other", "model_kwargs": {"pad_type": "same"}, "weights_sha256": "1" * 64, "decoder": "fast",
        "dct_scaling": True, "views": 2, "view_seed": 3, "engine": "openvino", "engine_version": "9",
        "precision": "bf16", "dtype": "float32", "weights": "elsewhere",
    }  # fmt: skip
    build_cache(photos, tmp_path / "a", extractor=fake_extractor())
    build_cache(photos, tmp_path / "b", extractor=fake_extractor(**changes))
    found = result("info", "--diff", tmp_path / "a", tmp_path / "b")
    expected = {name for name in changes if name != "model_kwargs"} | {"model_kwargs", "model_kwargs.pad_type"}
    assert set(found["differences"]) == expected
    assert found["differences"]["precision"] == ["fp32", "bf16"]
    assert found["equal"] is False
    assert result("info", "--diff", tmp_path / "a", tmp_path / "a") == {"equal": True, "differences": {}}
    assert "--diff" in refusal("info", tmp_path / "a", tmp_path / "b")
