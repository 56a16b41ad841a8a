"""The samples of a cache as a table for other programs: CSV, or Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featcache.cache.cache import FeatureCache
from featcache.datasets.listing import printable
from featcache.datasets.samples import Samples
from featcache.datasets.splits import NO_SPLIT, SPLITS
from featcache.errors import DependencyError, InputError
from featcache.system.files import refuse_existing, write_atomically

Cells = tuple[str, str, str, str, str, int | None, str]
COLUMNS = ("path", "label", "split", "dataset", "sha256", "row", "failure")


def sample_table(cache: FeatureCache, *, dataset: str | None = None) -> Iterator[Cells]:
    """Yield one tuple of `COLUMNS` for each sample of a data set, or of all of them: ``(path, label, …, failure)``.

    `path`: relative to the images' folder, bytes that are not UTF-8 as ``\\xNN``. `label`: a class name, several
    joined by ``;``, or numbers; empty where there is none. `split`: train, val, test. `sha256`: of the file's bytes,
    empty where it could not be read. `row`: its number in the store, None where it has none; `failure`: why, or empty.
    So the first three columns of a CSV are again a data set for `featcache.datasets.scan.scan`.
    """
    for name in cache.datasets if dataset is None else (dataset,):
        samples = cache.samples(name)
        with cache.reader() as reader:
            rows = reader.find(samples.digests)
        for index, path in enumerate(samples.paths):
            failure = samples.failures.get(index, "")
            digest = samples.digests[index]
            row = int(rows[index]) if rows[index] >= 0 and not failure else None
            split = "" if samples.splits[index] == NO_SPLIT else SPLITS[samples.splits[index]]
            yield (
                printable(path), _label(samples, index), split, name, digest.tobytes().hex() if digest.any() else "",
                row, failure,
            )  # fmt: skip
        for path, failure in samples.listing.failures:
            yield printable(path), "", "", name, "", None, failure


def write_sample_table(
    cache: FeatureCache, out: str | Path, *, dataset: str | None = None, overwrite: bool = False
) -> int:
    """Write `sample_table` to the file `out`, ``.csv`` or ``.parquet`` (``-``: CSV to stdout); return the rows written.

    Raises `InputError` for another extension, `ExistsError` where `out` exists and `overwrite` is false, and
    `DependencyError` for Parquet without pyarrow.
    """
    if str(out) == "-":
        text = io.StringIO(newline="")
        count = _write_csv(text, sample_table(cache, dataset=dataset))
        sys.stdout.flush()
        sys.stdout.buffer.write(text.getvalue().encode())  # UTF-8 as in a file, whatever the terminal's encoding
        return count
    path = Path(out)
    kind = _kind(path)
    refuse_existing(path, overwrite=overwrite)
    if kind == "parquet":
        return _write_parquet(path, list(sample_table(cache, dataset=dataset)))
    text = io.StringIO(newline="")
    count = _write_csv(text, sample_table(cache, dataset=dataset))
    write_atomically(path, text.getvalue().encode())
    return count


def _kind(path: Path) -> Literal["csv", "parquet"]:
    kind = path.suffix.lower()
    if kind == ".csv":
        return "csv"
    if kind == ".parquet":
        return "parquet"
    raise InputError(f"--samples must name a .csv or .parquet file, or - for stdout, got {str(path)!r}")


def _label(samples: Samples, index: int) -> str:
    targets = samples.targets
    if targets is None:
        label = int(samples.listing.labels[index])
        return samples.classes[label] if label >= 0 else ""
    if samples.task == "regression":
        return "" if np.isnan(targets[index]).all() else ";".join(str(value) for value in targets[index])
    return ";".join(name for name, present in zip(samples.classes, targets[index], strict=True) if present)


def _write_csv(file: Any, table: Iterator[Cells]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for cells in table:
        writer.writerow("" if cell is None else cell for cell in cells)
        count += 1
    return count


def _write_parquet(path: Path, table: list[Cells]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError("Parquet needs pyarrow: pip install featcache[parquet], or name a .csv file") from error
    columns = {name: [cells[position] for cells in table] for position, name in enumerate(COLUMNS)}
    kinds = [(name, pyarrow.int64() if name == "row" else pyarrow.string()) for name in COLUMNS]
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=pyarrow.schema(kinds)), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())
    return len(table)
