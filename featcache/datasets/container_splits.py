"""Which splits the names of files that hold many images each say: ``train-00000-of-00010.parquet``, ``val/0.tar``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from featcache.datasets.split_names import SplitName, split_name, together

_NUMBERS = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def container_splits(names: Iterable[str]) -> dict[str, int]:
    """Return name → index into `SPLITS` of those that say a split, where several splits are said; {} where not.

    Files of one split alone are what was downloaded of a data set: splits are then drawn, as of any images.
    """
    said: dict[str, SplitName] = {}
    for name in names:
        parts = name.rpartition(".")[0].split("/")
        parts[-1] = _NUMBERS.sub("", parts[-1])
        found = next((one for part in reversed(parts) if part and (one := split_name(part)) is not None), None)
        if found is not None:
            said[name] = found
    return together(said) if len({found.code for found in said.values()}) > 1 else {}
