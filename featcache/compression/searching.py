"""`compress`: the smallest or fastest model within a budget of accuracy, found by trying, the cheapest things first.

    integers                                a minute
    features that the head ignores go       no loss, a second; where it ignores none, a head of half of them is fitted
    channels go, the others solved again    a few minutes, then integers of what is left
    training toward the float features      where that lost too much, as long as there is time
    training with the rounding inside       where integers lost too much

Everything is decided on val, paired image by image with the float model; test is looked at once, for the model chosen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import FeatureCache, borrow_cache
from featcache.compression.attempts import Attempts, SearchTarget
from featcache.compression.candidates import Candidate, pareto_front, write_candidates
from featcache.compression.measurement import zero_share
from featcache.compression.refitting import Source, open_source
from featcache.errors import BudgetError, InputError
from featcache.model.directory import load_model, save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel
from featcache.system.files import refuse_existing, write_atomically
from featcache.system.json import parse_json

COSTS: Mapping[str, str] = {"size": "bytes", "latency": "latency_ms"}
MOST_MINUTES = 40.0
_ALIKE = 1.01  # costs that make no difference
FOLDER = "compression"  # beside the model's files: what was tried


@dataclass(frozen=True, slots=True)
class CompressSearch:
    """What `compress` returns.

    `chosen`: name, steps, bytes and latency of the model written. `candidates`: how many were tried, all of them in the
    file `candidates_csv`; `tried`: they themselves; `frontier`: those that none beats in accuracy and `target`.
    Accuracies are on the `n` images of `split`, which nothing was chosen by where it is test: of the float model and of
    the chosen one, paired over `gained` and `lost` images.
    """

    model: str
    target: str
    max_drop: float
    chosen: Mapping[str, Any]
    candidates: int
    candidates_csv: str
    frontier: tuple[Mapping[str, Any], ...]
    tried: tuple[Mapping[str, Any], ...]
    parameters: int
    macs: int
    macs_before: int
    sparsity: float
    bytes_before: int
    bytes_after: int
    split: str
    n: int
    accuracy_float: float
    accuracy_before_refit: float | None
    accuracy_after_refit: float
    gained: int
    lost: int
    latency_ms_before: float
    latency_ms_after: float
    wall_seconds: float
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        lists: dict[str, Any] = {"frontier": list(self.frontier), "tried": list(self.tried), "notes": list(self.notes)}
        return {**asdict(self), **lists}


def search(
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
    """Write the model that is smallest, or fastest here, among those that lose at most `max_drop` on val.

    The arguments are those of `featcache.pipeline.compressing.compress`, which makes a page of what is returned. Killed
    at any instant, the same call takes the candidates that were done from ``OUT.work`` and goes on. Raises
    `BudgetError` where no smaller (faster) model stays within the budget, `InputError` where a setting is out of range,
    no val split can tell `max_drop`, or model and cache do not belong together, `MissingError` where images are gone,
    `ExistsError` where `out` exists and `overwrite` is false.
    """
    if target not in COSTS:
        raise InputError(f"--target must be 'size' or 'latency', got {target!r}")
    if not 0 <= max_drop < 1:
        raise InputError(f"--max-drop must be at least 0 and below 1, a share of the val images, got {max_drop!r}")
    if not max_minutes > 0:
        raise InputError(f"--max-minutes must be above 0, got {max_minutes!r}")
    began = time.perf_counter()
    place = Path(out)
    refuse_existing(place, overwrite=overwrite)
    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        source = open_source(model, opened, dataset=dataset)
        opened.samples(source.dataset).require_images()
        reason = reason_not_to_search(
            opened, dataset=source.dataset, task=source.model.fitted_head.task, max_drop=max_drop
        )
        if reason is not None:
            raise InputError(reason)
        work = _work_of(place, source, max_drop, target, overwrite=overwrite)
        tried = Attempts(source, work, max_drop, target, 60 * max_minutes, say)
        tried.run()
        candidates = tried.timed()
        chosen = _choose(candidates, COSTS[target])
        front = [one.described() for one in pareto_front(candidates, cost=COSTS[target])]
        split, before, after = tried.tested(chosen)
        final, whole = load_model(chosen.model), candidates[0]
        golden_folder = Path(chosen.model) / "golden"
        golden = Golden.load(golden_folder) if golden_folder.exists() else None
        step = {
            "verb": "compress", "target": target, "max_drop": max_drop, "steps": list(chosen.steps),
            "val": {"drop": chosen.drop, "low": chosen.drop_low, "high": chosen.drop_high},
        }  # fmt: skip
        final = final.copy(lineage=[*final.lineage, step])
        save_model(final, place, golden=golden, overwrite=overwrite)
        (place / FOLDER).mkdir()
        write_candidates(candidates, place / FOLDER / "candidates.csv")
        notes = list(tried.notes)
        if chosen.latency_ms > whole.latency_ms:
            notes.append(
                f"the model is smaller, not faster here: {chosen.latency_ms:.3g} ms against {whole.latency_ms:.3g} ms "
                "in floats; --target latency takes the fastest"
            )
        if chosen.drop_high > max_drop:
            notes.append(
                f"val cannot rule out a larger loss: {chosen.drop:.2%} of its images, {chosen.drop_low:.2%} to "
                f"{chosen.drop_high:.2%} with 95 % confidence"
            )
        last: Any = next((step["accuracy"] for step in reversed(final.lineage) if "accuracy" in step), {})
    shutil.rmtree(tried.work)
    return CompressSearch(
        model=str(place),
        target=target,
        max_drop=max_drop,
        chosen={
            "name": chosen.name,
            "steps": list(chosen.steps),
            "bytes": chosen.bytes,
            "latency_ms": chosen.latency_ms,
        },
        candidates=len(candidates),
        candidates_csv=str(place / FOLDER / "candidates.csv"),
        frontier=tuple(front),
        tried=tuple(one.described() for one in candidates),
        parameters=chosen.parameters,
        macs=chosen.macs,
        macs_before=whole.macs,
        sparsity=zero_share(final),
        bytes_before=whole.bytes,
        bytes_after=chosen.bytes,
        split=split,
        n=len(before),
        accuracy_float=float(before.mean()),
        accuracy_before_refit=last.get("accuracy_before_refit"),
        accuracy_after_refit=float(after.mean()),
        gained=int((after & ~before).sum()),
        lost=int((before & ~after).sum()),
        latency_ms_before=whole.latency_ms,
        latency_ms_after=chosen.latency_ms,
        wall_seconds=time.perf_counter() - began,
        notes=tuple(notes),
    )


def reason_not_to_search(cache: FeatureCache, *, dataset: str | None, task: str, max_drop: float) -> str | None:
    """Return why val cannot tell a loss of `max_drop`, None where it can."""
    if task != "classification":
        return f"compress decides by right and wrong answers, the head's task is {task!r}: use prune and quantize"
    n = len(cache.select(split="val", dataset=dataset).indices)
    least = max(2, 1 if max_drop == 0 else int(np.ceil(1 / max_drop)))
    if n < least:
        return (
            f"the val split must have at least {least} labelled images to tell a loss of {max_drop:.2%}, it has {n}: "
            "allow more with --max-drop, or build the cache with a larger val split"
        )
    return None


def _work_of(place: Path, source: Source, max_drop: float, target: SearchTarget, *, overwrite: bool) -> Path:
    """Return the directory of what was tried; of another search it is refused, or emptied with `overwrite`."""
    work = place.with_name(f"{place.name}.work")
    described = [source.model.digest(), source.cache.content_digest(), source.dataset, max_drop, target]
    identity = hashlib.sha256(repr(described).encode()).hexdigest()
    note = work / "search.json"
    if work.exists() and (not note.exists() or parse_json(note.read_bytes()).get("identity") != identity):
        if not overwrite:
            raise InputError(f"the unfinished work in {str(work)!r} is of another call: delete it, or give --overwrite")
        shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        write_atomically(note, json.dumps({"identity": identity}).encode())
    return work


def _choose(candidates: list[Candidate], cost: str) -> Candidate:
    whole = candidates[0]
    smaller = [one for one in candidates[1:] if getattr(one, cost) < getattr(whole, cost)]
    good = [one for one in smaller if one.meets]
    if good:
        least = min(getattr(one, cost) for one in good)
        # among equals the one that loses least; of those the last, which was trained longest
        alike = [one for one in good if getattr(one, cost) <= _ALIKE * least]
        return min(reversed(alike), key=lambda one: one.drop)
    best = min(smaller or candidates[1:], key=lambda one: one.drop, default=whole)
    raise BudgetError(
        f"no model with less {cost.replace('_', ' ')} stays within --max-drop, of {len(candidates) - 1} tried; best: "
        f"{' + '.join(best.steps) or 'the float model'}, {best.drop:.2%} lost ({best.drop_low:.2%} to "
        f"{best.drop_high:.2%}), {best.bytes:,} bytes, {best.latency_ms:.2f} ms: allow more, or give it more minutes",
        best=best.described(),
    )
