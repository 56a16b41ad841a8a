"""`compress`: search for the smallest model within a budget, and the page that shows what was tried."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from featcache.cache import FeatureCache
from featcache.compression.attempts import SearchTarget
from featcache.compression.searching import FOLDER, MOST_MINUTES, CompressSearch, search
from featcache.model.merged import MergedModel
from featcache.pipeline.page import FORMAT, VERSION, write_report
from featcache.system.files import write_atomically


def compress(
    model: MergedModel | str | os.PathLike[str],
    *,
    cache: FeatureCache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    max_drop: float = 0.01,
    target: SearchTarget = "size",
    max_minutes: float = MOST_MINUTES,
    dataset: str | None = None,
    images: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> CompressSearch:
    """Write the smallest or fastest model that loses at most `max_drop` on val, and a page of what was tried.

    Features that the head ignores go, channels go and the others are solved again, the network is trained toward the
    float features, weights and activations become integers, with training where that pays: the cheapest first, each
    candidate measured from image bytes. ``OUT/compression`` holds ``candidates.csv`` and ``report.html``.

    Parameters
    ----------
    model
        A MODEL directory, or the model itself; not quantized.
    cache
        The one that its head was trained on, with its images.
    out
        The MODEL directory to write.
    max_drop
        Share of the val images by which fewer may be right, at least 0 and below 1.
    target
        ``size``: bytes of the ONNX file. ``latency``: time of one image in ONNX Runtime on this machine.
    max_minutes
        No candidate is begun that would end after that, by what the last one of its kind took; training takes its share
        of what is left.
    dataset
        Which one of the cache, where it has several.
    images
        Where the images of the cache lie by now, if no longer where they were built from.
    overwrite
        Replace what is at `out`.
    say
        Called with a line for each candidate.

    Returns
    -------
    CompressSearch
        The model chosen, measured on test, and what was tried.

    Raises
    ------
    BudgetError
        Where no smaller (faster) model stays within the budget; it names the best one found.
    InputError
        Where a setting is out of range, there is no val split that can tell `max_drop`, or model and cache do not
        belong together.
    MissingError
        Where images are gone.
    ExistsError
        Where `out` exists and `overwrite` is false.

    Examples
    --------
    >>> from featcache import compress
    >>> found = compress("model", cache="cache", out="small", max_drop=0.9, max_minutes=0.001)
    >>> found.bytes_after < found.bytes_before
    True
    >>> sorted(path.name for path in Path("small/compression").iterdir())
    ['candidates.csv', 'report.html', 'report.json']
    """
    found = search(
        model, cache=cache, out=out, max_drop=max_drop, target=target, max_minutes=max_minutes, dataset=dataset,
        images=images, overwrite=overwrite, say=say,
    )  # fmt: skip
    place = Path(found.model)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "title": f"compress: at most {max_drop:.1%} of val lost, least {target}",
        "candidates": [dict(entry) for entry in found.tried],
        "chosen": found.chosen["name"],
        "notes": list(found.notes),
    }
    report = place / FOLDER / "report.json"
    write_atomically(report, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    write_report(report, overwrite=True)
    return found
