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
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featcache.cache import FeatureCache, borrow_cache
from featcache.compression.candidates import (
    FEW_IMAGES,
    VIEWS,
    Candidate,
    is_within,
    paired_drop,
    pareto_front,
    right_answers,
    timed_together,
    write_candidates,
)
from featcache.compression.channels import Target
from featcache.compression.measurement import graph_macs, zero_share
from featcache.compression.pruning import prune
from featcache.compression.quantization import quantize
from featcache.compression.recovering import recover
from featcache.compression.refitting import SPLITS, Source, open_source
from featcache.errors import BudgetError, CorruptError, InputError
from featcache.heads import Head
from featcache.heads.linear import LinearHead
from featcache.model.directory import load_model, save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel
from featcache.model.reference import logits_of_images
from featcache.system.files import refuse_existing, write_atomically
from featcache.system.json import parse_json
from featcache.train.fit import refit_head

SearchTarget = Literal["size", "latency"]
COSTS: Mapping[str, str] = {"size": "bytes", "latency": "latency_ms"}
_REMOVED: Mapping[SearchTarget, Target] = {"size": "parameters", "latency": "macs"}  # by channels

MOST_MINUTES = 40.0
_FEATURES = 0.5  # the share that a head is to read which reads all
# shares of what is removed, until a step loses too much
_AMOUNTS: Mapping[SearchTarget, tuple[float, ...]] = {"size": (0.5, 0.7, 0.85), "latency": (0.3, 0.5, 0.7)}
_LEAST_STEP = 0.1  # between an amount that is within the budget and one that is not
_LEAST_TRAINING = 0.5  # minutes; less is not worth its start
_MOST_TRAINING = 10.0
_TRAINING_SHARE = 0.3  # of the time left
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
        tried = _Search(source, _work_of(place, source, max_drop, target), max_drop, target, 60 * max_minutes, say)
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


def _work_of(place: Path, source: Source, max_drop: float, target: SearchTarget) -> Path:
    """Return the directory of what was tried, emptied where it is of another search."""
    work = place.with_name(f"{place.name}.work")
    described = [source.model.digest(), source.cache.content_digest(), source.dataset, max_drop, target]
    identity = hashlib.sha256(repr(described).encode()).hexdigest()
    note = work / "search.json"
    if work.exists():
        if not note.exists() or parse_json(note.read_bytes()).get("identity") != identity:
            raise InputError(f"the unfinished work in {str(work)!r} is of another call: delete it to start again")
    else:
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


def _name(amount: float) -> str:
    return f"channels-{round(100 * amount)}"


class _Search:
    """The candidates made so far, and which ones to make next."""

    def __init__(
        self, source: Source, work: Path, max_drop: float, target: SearchTarget, seconds: float,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.source, self.work, self.max_drop, self.target, self.say = source, work, max_drop, target, say
        self.seconds, self.began = seconds, time.monotonic()
        self.candidates: dict[str, Candidate] = {}
        self.notes: list[str] = []
        self._right: npt.NDArray[Any] | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def run(self) -> None:
        """Try one thing after the other, the cheapest first, while there is time."""
        whole = self._try("float", (), lambda out: save_model(self.source.model, out, golden=self.source.golden))
        assert whole is not None
        self._integers(whole)
        base = self._without_ignored(whole)
        within, beyond = 0.0, 1.0
        for amount in _AMOUNTS[self.target]:
            if self._narrowed(base, amount):
                within = amount
            else:
                beyond = amount
                break
        while beyond - within > _LEAST_STEP + 1e-9 and beyond < 1 and self.left > 0:
            middle = round((within + beyond) / 2, 2)
            if self._narrowed(base, middle):
                within = middle
            else:
                beyond = middle
        if within:
            self._trained(within)
        elif base is not whole:
            self._integers(base)

    def _trained(self, amount: float) -> None:
        """Spend what time is left on the narrowest network within the budget, where it was not trained yet."""
        narrow = self.candidates.get(_name(amount))
        if narrow is not None and narrow.meets and self._minutes() >= _LEAST_TRAINING:
            trained = self._recovered(narrow)
            if trained is not None and trained.meets:
                self._integers(trained)

    def _without_ignored(self, whole: Candidate) -> Candidate:
        """Return the candidate without the features that the head ignores; `whole` where they cannot be spared."""
        cache, dataset = self.source.cache, self.source.dataset
        head = self.source.model.fitted_head
        if not isinstance(head, LinearHead) or head.settings.get("outputs") is not None:
            return whole
        model = whole.model
        steps: tuple[str, ...] = ("head",)
        try:
            if bool(np.any(head.weight != 0, axis=0).all()):
                sparse = refit_head(cache, {**head.settings, "keep_features": _FEATURES}, dataset=dataset)
                model = self._with_head(sparse.head)
                steps = (f"head of {sparse.features_used} features",)
            narrow = self._try(
                "head", steps, lambda out: prune(model, cache=cache, out=out, method="head", dataset=dataset)
            )
        except InputError as error:
            self.notes.append(f"features without weight stay: {error}")
            return whole
        return narrow if narrow is not None and narrow.meets else whole

    def _with_head(self, head: Head) -> str:
        """Return where the float model lies with another head."""
        model = self.source.model.with_head(head)
        golden = self.source.golden
        if golden is not None:
            golden = Golden(golden.kind, "torch fp32", golden.images, logits_of_images(model, golden.images))
        return str(save_model(model, self.work / "other-head", golden=golden, overwrite=True))

    def _narrowed(self, base: Candidate, amount: float) -> bool:
        """Try `base` without this share of its multiplications, trained where that is needed; whether it is within."""
        cache, dataset = self.source.cache, self.source.dataset
        name = _name(amount)
        removed = _REMOVED[self.target]
        steps = (*base.steps, f"channel {amount:.0%} of {removed}")
        try:
            narrow = self._try(
                name,
                steps,
                lambda out: prune(base.model, cache=cache, out=out, amount=amount, target=removed, dataset=dataset),
            )
        except InputError as error:  # layers that keep their width leave less to take
            self.notes.append(f"channels, {amount:.0%} of {removed}: {error}")
            return False
        if narrow is not None and not narrow.meets and self._minutes() >= _LEAST_TRAINING:
            narrow = self._recovered(narrow)
        if narrow is None or not narrow.meets:
            return False
        self._integers(narrow)
        return True

    def _minutes(self) -> float:
        """Return how long a training may take by the time that is left."""
        return round(min(_TRAINING_SHARE * self.left / 60, _MOST_TRAINING), 1)

    def _recovered(self, narrow: Candidate) -> Candidate | None:
        minutes = self._minutes()
        return self._try(
            f"{narrow.name}-recovered",
            (*narrow.steps, f"recover {minutes:g} min"),
            lambda out: recover(
                narrow.model, cache=self.source.cache, out=out, minutes=minutes, teacher=self.source.model,
                dataset=self.source.dataset, say=self.say,
            ),
        )  # fmt: skip

    def _integers(self, of: Candidate) -> None:
        """Try the integers of a candidate, trained with the rounding inside where calibrated ones lose too much."""
        cache, dataset = self.source.cache, self.source.dataset
        calibrated = self._try(
            f"{of.name}-int8",
            (*of.steps, "int8"),
            lambda out: quantize(of.model, cache=cache, out=out, dataset=dataset),
        )
        if calibrated is None or calibrated.meets:
            return
        minutes = self._minutes()
        if minutes >= _LEAST_TRAINING:
            self._try(
                f"{of.name}-qat", (*of.steps, f"int8 qat {minutes:g} min"),
                lambda out: quantize(
                    of.model, cache=cache, out=out, method="qat", recover=minutes, dataset=dataset, say=self.say
                ),
            )  # fmt: skip

    def _try(self, name: str, steps: tuple[str, ...], make: Callable[[Path], object]) -> Candidate | None:
        """Return the candidate that `make` writes, measured on val; None where there is no time left to begin."""
        from featcache.graph.write import write_onnx

        place, note = self.work / name, self.work / f"{name}.json"
        if note.exists():
            try:
                candidate = Candidate.from_json(parse_json(note.read_bytes()))
            except (ValueError, TypeError, KeyError) as error:
                raise CorruptError(f"{str(note)!r} must describe a candidate, got {error!r}: delete it") from error
            if name == "float":
                model = load_model(candidate.model)
                with tempfile.TemporaryDirectory() as folder:
                    self._right = self._right_on_val(model, write_onnx(model, Path(folder) / "model.onnx"))
        else:
            if self.candidates and self.left <= 0 and len(self.candidates) > 1:
                return None
            began = time.perf_counter()
            shutil.rmtree(place, ignore_errors=True)
            make(place)
            model = load_model(place)
            with tempfile.TemporaryDirectory() as folder:
                graph = write_onnx(model, Path(folder) / "model.onnx")
                right = self._right_on_val(model, graph)
                if self._right is None:
                    self._right = right
                drop = paired_drop(self._right, right)
                before, after = self._right[:, 0], right[:, 0]
                candidate = Candidate(
                    name=name, steps=steps, model=str(place), val_accuracy=float(after.mean()), drop=drop[0],
                    drop_low=drop[1], drop_high=drop[2], gained=int((after & ~before).sum()),
                    lost=int((before & ~after).sum()), meets=is_within(drop, self.max_drop),
                    bytes=graph.stat().st_size, macs=graph_macs(graph), parameters=model.parameter_count(),
                    latency_ms=0.0, seconds=time.perf_counter() - began,
                )  # fmt: skip
            write_atomically(note, json.dumps(candidate.to_json()).encode())
        self.candidates[name] = candidate
        self.say(
            f"{' + '.join(steps) or 'float'}: val {candidate.val_accuracy:.1%}, {candidate.bytes:,} bytes"
            + (f", {candidate.drop:+.2%} lost" if steps else "")
            + ("" if candidate.meets else ": more than allowed")
        )
        return candidate

    def _right_on_val(self, model: MergedModel, graph: Path) -> npt.NDArray[Any]:
        cache, dataset = self.source.cache, self.source.dataset
        few = len(cache.select(split="val", dataset=dataset).indices) < FEW_IMAGES
        return right_answers(model, graph, cache, dataset=dataset, split="val", views=VIEWS if few else 1)

    def timed(self) -> list[Candidate]:
        """Return the candidates with their latencies, all measured in turn."""
        times = timed_together({name: load_model(one.model) for name, one in self.candidates.items()})
        return [replace(one, latency_ms=times[name]) for name, one in self.candidates.items()]

    def tested(self, chosen: Candidate) -> tuple[str, npt.NDArray[Any], npt.NDArray[Any]]:
        """Return the best split there is, and which of its images the float and the chosen model answer rightly."""
        from featcache.graph.write import write_onnx

        split = next(
            name for name in SPLITS if len(self.source.cache.select(split=name, dataset=self.source.dataset).indices)
        )
        right = []
        for candidate in (self.candidates["float"], chosen):
            model = load_model(candidate.model)
            with tempfile.TemporaryDirectory() as folder:
                graph = write_onnx(model, Path(folder) / "model.onnx")
                found = right_answers(model, graph, self.source.cache, dataset=self.source.dataset, split=split)
                right.append(found[:, 0])
        return split, right[0], right[1]
