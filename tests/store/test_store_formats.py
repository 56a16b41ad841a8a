"""Both formats read by other people's tools alone, as `cache_store/README.md` says; and the Zarr group is valid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from featcache.store import Column, StoreSettings, create_store
from featcache.testing.store import COLUMNS, append, make_keys, make_values

README = Path(__file__).resolve().parent.parent.parent / "cache_store" / "README.md"


@pytest.fixture(params=["lmdb", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Path:
    settings = StoreSettings(block_rows=256, key_block_rows=512)
    with create_store(tmp_path / "store", kind=kind, columns=COLUMNS, settings=settings) as store:
        append(store, make_keys(1000)[:700])
        append(store, make_keys(1000)[700:])
        with store.writer() as writer:
            writer.drop(make_keys(1000)[::10])
            writer.commit()
    return tmp_path / "store"


def readme_block(language: str, containing: str) -> str:
    """Return the code block of the README that contains a text."""
    blocks = README.read_text().split("```")[1::2]
    found = [b.removeprefix(language) for b in blocks if b.startswith(language) and containing in b]
    assert len(found) == 1, f"the README must have one {language} block with {containing!r}"
    return found[0]


def test_the_readmes_program_reads_a_store_without_featcache(place: Path, kind: str, tmp_path: Path) -> None:
    program = readme_block("python", "import lmdb" if kind == "lmdb" else 'STORE).glob("rows-*.zarr")')
    kept = np.delete(make_keys(1000), np.s_[::10], axis=0)
    np.savez(tmp_path / "expected.npz", keys=kept, **make_values(kept))
    check = f"""
expected = np.load({str(tmp_path / "expected.npz")!r})
assert np.array_equal(keys, expected["keys"])
assert set(columns) == set(expected.files) - {{"keys"}}
for name, values in columns.items():
    assert values.dtype == expected[name].dtype and np.array_equal(values, expected[name]), name
print("read", len(keys))
"""
    absent = "import sys; sys.modules['featcache'] = None\n"  # importing it fails
    script = absent + f"STORE = {str(place)!r}\n" + program + check
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "read 900\n"


def test_the_zarr_group_is_valid_and_checks_itself(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    store = create_store(tmp_path / "store", kind="zarr", columns=COLUMNS)
    keys = make_keys(1000)
    append(store, keys)
    folder = tmp_path / "store" / "rows-000001.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(folder), mode="r")
        names = {name for name, _ in group.members(max_depth=None)}
        assert names == {"keys", "row_crc32c", "columns"} | {f"columns/{c.name}" for c in COLUMNS}
        for column in COLUMNS:
            array = group[f"columns/{column.name}"]
            assert array.shape == (1000, *column.shape)
            assert array.dtype == column.dtype
            assert array.metadata.zarr_format == 3
            assert np.array_equal(array[:], make_values(keys)[column.name])
            # What zarr-python would write for such an array is what lies there: nothing beside the specification.
            written = json.loads((folder / "columns" / column.name / "zarr.json").read_text())
            again = json.loads(json.dumps(array.metadata.to_dict(), default=str))
            assert written.keys() <= again.keys()
            for field in ("shape", "data_type", "node_type", "zarr_format", "chunk_grid", "chunk_key_encoding"):
                assert written[field] == again[field], field
    assert {file.name.split(".")[0] for file in folder.rglob("*") if file.is_file()} == {"zarr", "c"}
    chunk = folder / "columns" / "tokens" / "c.0.0.0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        group["columns/tokens"][:]


@pytest.mark.parametrize("row", [(1280,), (197, 384), (7,), (1,)])
def test_a_store_takes_little_more_than_its_rows(kind: str, tmp_path: Path, row: tuple[int, ...]) -> None:
    width = int(np.prod(row)) * 2
    count = max(64, 32_000_000 // width) if width > 16 else 100_000
    store = create_store(tmp_path / "store", kind=kind, columns=[Column("features", row, "float16")])
    keys = make_keys(count)
    values = np.ones((1, *row), dtype=np.float16)
    step = -(-count // 5)
    with store.writer() as writer:
        for start in range(0, count, step):
            part = keys[start : start + step]
            writer.append(part, {"features": np.broadcast_to(values, (len(part), *row))})
            writer.commit()
    raw = count * (width + 32 + 4)
    assert store.nbytes() <= 1.05 * raw + (1 << 19)
    # A Zarr store's last chunks end in a hole: the files are longer than what they take.
    assert sum(os.stat(f).st_size for f in tmp_path.rglob("*") if f.is_file()) <= 1.05 * raw + (6 << 20)
