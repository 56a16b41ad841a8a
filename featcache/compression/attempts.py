"""What `compress` tries, in which order, and what each try gives on val.

Each try is a MODEL in a directory of its own, with a JSON of what was measured beside it: a search that was killed goes
on behind the last one that was done.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featcache.compression.candidates import (
    FEW_IMAGES,
    VIEWS,
    Candidate,
    is_within,
    paired_drop,
    right_answers,
    timed_together,
)
from featcache.compression.channels import Target
from featcache.compression.measurement import graph_macs
from featcache.compression.pruning import prune
from featcache.compression.quantization import quantize
from featcache.compression.recovering import recover
from featcache.compression.refitting import SPLITS, Source
from featcache.errors import CorruptError, InputError
from featcache.heads import Head
from featcache.heads.linear import LinearHead
from featcache.model.directory import load_model, save_model
from featcache.model.golden import Golden
from featcache.model.merged import MergedModel
from featcache.model.reference import logits_of_images
from featcache.system.files import write_atomically
from featcache.system.json import parse_json
from featcache.train.fit import refit_head

SearchTarget = Literal["size", "latency"]
_REMOVED: Mapping[SearchTarget, Target] = {"size": "parameters", "latency": "macs"}  # by channels

_FEATURES = 0.5  # the share that a head is to read which reads all
# shares of what is removed, until a step loses too much
_AMOUNTS: Mapping[SearchTarget, tuple[float, ...]] = {"size": (0.5, 0.7, 0.85), "latency": (0.3, 0.5, 0.7)}
_LEAST_STEP = 0.1  # between an amount that is within the budget and one that is not
_LEAST_TRAINING = 0.5  # minutes; less is not worth its start
_MOST_TRAINING = 10.0
_TRAINING_SHARE = 0.3  # of the time left


def _name(amount: float) -> str:
    return f"channels-{round(100 * amount)}"


class Attempts:
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

    def _expected(self, step: str) -> float:
        """Return the seconds that the last candidate took whose own step was of this kind; 0 for a new kind."""
        kind = step.split()[0]
        alike = [one.seconds for one in self.candidates.values() if one.steps and one.steps[-1].split()[0] == kind]
        return alike[-1] if alike and kind != "recover" else 0.0  # a recovery is told its own minutes

    def _try(self, name: str, steps: tuple[str, ...], make: Callable[[Path], object]) -> Candidate | None:
        """Return the candidate that `make` writes, measured on val; None where it would not end in time."""
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
            if len(self.candidates) > 1 and self.left < self._expected(steps[-1]):
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
