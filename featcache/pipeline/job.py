"""`run`: the main job in one call: images → features → head → model → pruned → quantized → bundle and report."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.cache import open_cache
from featcache.datasets.place import data_set_name
from featcache.datasets.remarks import check_trainable
from featcache.errors import BudgetError, InputError, VerificationError
from featcache.extract.build import build_cache
from featcache.extract.inputs import find_input, input_of
from featcache.system.files import refuse_existing, write_atomically
from featcache.train.fit import train_head
from featcache.train.options import HeadOptions

if TYPE_CHECKING:
    from featcache.compression.searching import CompressSearch

VARIANTS = ("float", "pruned", "int8", "small")


@dataclass(frozen=True, slots=True)
class RunReport:
    """What `run` did, step by step, as the JSON of each verb, None where it had no part.

    `shipped`: which variant lies in the bundle at `bundle`. `table`: accuracy (of the test split, from the bundle's own
    files and image bytes; None without one), `val_accuracy` (from the cache, of the head after each refit; None without
    val), bytes and latency of each variant, measured here. `seconds_by_step`: wall time by verb, in their order.
    `notes`: each once.
    """

    bundle: str
    shipped: str
    table: tuple[Mapping[str, Any], ...]
    build: Mapping[str, Any]
    train: Mapping[str, Any]
    merge: Mapping[str, Any]
    prune: Mapping[str, Any] | None
    quantize: Mapping[str, Any] | None
    compress: Mapping[str, Any] | None
    export: Mapping[str, Any]
    notes: tuple[str, ...]
    seconds_by_step: Mapping[str, float]
    report_html: str
    report_json: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**dataclasses.asdict(self), "table": [dict(row) for row in self.table], "notes": list(self.notes)}


class _Steps:
    """Says which step begins, and counts the seconds of each by its verb."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._verb = ""
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def begin(self, verb: str, line: str) -> None:
        """End the step before, if any, and say the line of the next."""
        self.end()
        self._verb, self._began = verb, time.perf_counter()
        self._say(line)

    def end(self) -> None:
        """Count the seconds of the step that is under way."""
        if self._verb:
            self.seconds[self._verb] = self.seconds.get(self._verb, 0.0) + time.perf_counter() - self._began
        self._verb = ""


def run(
    images: str | Path,
    *,
    out: str | Path,
    backbone: str | None = None,
    weights: str | Path | None = None,
    download: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    head: HeadOptions | None = None,
    prune_amount: float = 0.1,
    max_drop: float = 0.02,
    budget_minutes: float | None = None,
    formats: Sequence[str] = ("onnx",),
    store: str = "lmdb",
    task: str | None = None,
    splits: bool = True,
    input: str | None = None,
    input_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> RunReport:
    """Do the main job on `images` and return what each step did; everything made lies in `out`.

    The cache in ``out/cache`` is kept and reused by the next run. A compressed model goes on only if its accuracy after
    the refit is at most `max_drop` below that of the model it was made from, on val: the INT8 model is made of the
    pruned or else the unpruned one, the bundle of the INT8 or else that one, and a note says so.

    Parameters
    ----------
    images
        Class folders, splits above class folders, or a CSV; or texts.
    out
        The directory for everything that is made.
    backbone, weights, download, model_kwargs, mean, std, store, task, splits, input, input_options
        As in `build_cache`.
    head
        As in `train_head`.
    prune_amount
        Share of MACs that channel pruning removes, 0 for none.
    max_drop
        Largest loss of accuracy on val that a compression may cost, in [0, 1].
    budget_minutes
        Search for the smallest model within `max_drop` for so long (`compress`), instead of pruning by `prune_amount`
        and quantizing once; where none is smaller within it, the float model ships, and where val is too small to
        decide on, it is pruned and quantized once: a note says so.
    formats
        Names of device formats, as in `export`.
    overwrite
        Whether a run in `out` may be replaced.
    say
        Called with a line before each step, and with each note on the images before they are read.

    Returns
    -------
    RunReport
        What each step did, and the table that compares the variants; the same stands in ``OUT/report.html``.

    Raises
    ------
    InputError
        Where a value is out of its range; before an image is read, where no head can be trained on them; else as
        `build_cache`, `train_head`, `merge`, `prune`, `quantize` and `export` do.
    ExistsError
        Where `out` holds a run already and may not be replaced.

    Examples
    --------
    >>> from featcache import run
    >>> report = run("photos", out="job", backbone="test_resnet", weights="random:0", prune_amount=0.0)
    >>> [row["model"] for row in report.table]
    ['float', 'int8']
    >>> Path(report.report_html).name
    'report.html'
    """
    from featcache.bundle.exporting import export
    from featcache.bundle.title import report_title
    from featcache.compression import prune, quantize
    from featcache.compression.searching import reason_not_to_search
    from featcache.model.kinds import model_kind
    from featcache.model.merging import merge
    from featcache.pipeline.compressing import compress
    from featcache.pipeline.page import read_report, write_report

    if not 0 <= prune_amount < 1:
        raise InputError(f"prune_amount must be at least 0 and below 1, got {prune_amount!r}")
    if budget_minutes is not None and not budget_minutes > 0:
        raise InputError(f"--budget-minutes must be above 0, got {budget_minutes!r}: leave it out for no search")
    place = Path(out)
    report_json, report_html = place / "report.json", place / "report.html"
    refuse_existing(report_json, overwrite=overwrite)
    cache = place / "cache"
    notes: list[str] = []

    kind = find_input(input) if input is not None else input_of(images, input_options)
    kind.refuse_options(input_options or {})
    listing = kind.scan(images, task=task, splits=splits, options=input_options)  # type: ignore[arg-type]
    check_trainable(listing)
    steps = _Steps(say)
    steps.begin("build", f"features: one pass over the {kind.noun}s")
    built = build_cache(
        listing, cache, backbone=backbone, weights=weights, download=download, model_kwargs=model_kwargs, mean=mean,
        std=std, store=store, dataset="images", input_options=input_options, say=lambda note: say(f"note: {note}"),
    )  # fmt: skip
    notes += built.notes
    if built.failed:
        path, reason = built.failures[0]
        notes.append(f"{built.failed} of {built.images} images were left out, the first being {path!r}: {reason}")
    if built.random_weights:
        notes.append(f"the backbone's weights are random ({built.weights}): it has learned nothing")

    steps.begin("train", "head: trained from the cache")
    trained = train_head(cache, head=head)
    trained.save(place / "head", overwrite=True)
    notes += trained.notes

    steps.begin("merge", "merge: preprocessing, backbone and head in one model")
    models = {name: place / "models" / name for name in VARIANTS}
    merged = merge(place / "head", cache, out=models["float"], overwrite=True)

    models_are = model_kind(listing.input)
    if prune_amount > 0 and not models_are.can_be_pruned:
        notes.append(f"nothing was pruned: models of {kind.noun}s are not")
    if budget_minutes is not None and not models_are.can_be_pruned:
        notes.append(f"nothing was searched, only quantized once: models of {kind.noun}s are not pruned")
        budget_minutes = None
    if budget_minutes is not None:
        with open_cache(cache) as opened:
            hindrance = reason_not_to_search(opened, dataset="images", task=trained.task, max_drop=max_drop)
        if hindrance is not None:
            notes.append(f"nothing was searched, only pruned and quantized once: {hindrance}")
            budget_minutes = None
    pruned = quantized = searched = None
    source, shipped = "float", "int8"
    if budget_minutes is not None:
        steps.begin(
            "compress",
            f"compress: the smallest model that loses at most {max_drop:.1%} of val, for {budget_minutes:g} minutes",
        )
        shipped = "small"
        try:
            searched = compress(
                models["float"], cache=cache, out=models["small"], max_drop=max_drop, max_minutes=budget_minutes,
                overwrite=True, say=say,
            )  # fmt: skip
            notes += searched.notes
            if searched.lost > searched.gained:
                notes.append(
                    f"of {searched.n} images of {searched.split} the float model alone gets {searched.lost} right, the "
                    f"one that ships {searched.gained}"
                )
        except BudgetError as error:
            notes.append(f"the float model ships: {error}")
            shipped = "float"
    else:
        if prune_amount > 0 and models_are.can_be_pruned:
            steps.begin("prune", f"prune: {prune_amount:.0%} of the multiplications, then the head refitted")
            pruned = prune(
                models["float"], cache=cache, out=models["pruned"], method="channel", amount=prune_amount,
                overwrite=True,
            )  # fmt: skip
            if _keeps(pruned.val_drop, max_drop):
                source = "pruned"
            else:
                lost = _lost("pruning", pruned.val_drop, max_drop)
                notes.append(f"{lost}: the INT8 model is made of the unpruned one")
        steps.begin("quantize", f"quantize: INT8 from training {kind.noun}s, then the head refitted")
        quantized = quantize(
            models[source], cache=cache, out=models["int8"], precision=models_are.integers, overwrite=True
        )
        notes += quantized.notes
        if quantized.val_drop is not None and not _keeps(quantized.val_drop, max_drop):
            notes.append(f"{_lost('quantization', quantized.val_drop, max_drop)}: the bundle holds the {source} model")
            shipped = source
    stages = {"float": True, "pruned": pruned, "int8": quantized, "small": searched}
    made = [name for name, result in stages.items() if result]
    table, exported, bundle = [], {}, place / "bundle"
    for name in [name for name in made if name != shipped]:
        steps.begin("export", f"export: the {name} model, run from image bytes")
        try:
            exported[name] = export(
                models[name], out=place / "models" / f"{name}-bundle", formats=("onnx",), cache=cache, overwrite=True
            )
        except VerificationError as error:
            notes.append(f"{name}: {error}")
    steps.begin("export", f"export: the {shipped} model, run from image bytes")
    try:
        exported[shipped] = export(models[shipped], out=bundle, formats=formats, cache=cache, overwrite=True)
    except VerificationError as error:
        if shipped not in ("int8", "small"):
            raise
        # Integer kernels round between layers where the reference does not: a network can be too sensitive for that.
        notes.append(f"{shipped}: {error}: the bundle holds the {source} model")
        shipped = source
        steps.begin("export", f"export: the {shipped} model for the bundle")
        exported[shipped] = export(models[shipped], out=bundle, formats=formats, cache=cache, overwrite=True)
    val_accuracies = {
        "float": trained.val_accuracy,
        "pruned": pruned and pruned.val_accuracy_after_refit,
        "int8": quantized and quantized.val_accuracy_after_refit,
        "small": searched and _accuracy_of_chosen(searched),
    }
    for name in made:
        entry = exported[name].formats["onnx"].to_json() if name in exported else {}
        latency = entry.get("latency_ms") or {}
        table.append(
            {
                "model": name,
                "accuracy": entry.get("accuracy"),
                "val_accuracy": val_accuracies[name],
                "bytes": entry.get("bytes"),
                "latency_ms": latency.get("median"),
            }
        )

    steps.begin("report", "report: one page of all of it")
    notes = list(dict.fromkeys(notes))
    with open_cache(cache) as opened:
        described = opened.info()["datasets"]
    shipped_name = f"int8 of {source}" if shipped == "int8" else shipped
    if shipped == "small" and searched is not None:
        shipped_name = " + ".join(searched.chosen["steps"])
    document = read_report(place / "bundle" / "report.json")
    results: dict[str, Any] = {
        "build": built.to_json(),
        "train": trained.to_json(),
        "merge": merged.to_json(),
        "prune": pruned.to_json() if pruned else None,
        "quantize": quantized.to_json() if quantized else None,
        "compress": searched.to_json() if searched else None,
    }
    document["title"] = report_title(_dataset_name(images), trained.classes, task=trained.task)
    if searched is not None:
        document |= {"candidates": list(searched.tried), "chosen": searched.chosen["name"]}
    document |= {"table": table, "datasets": described, "run": results, "notes": notes, "shipped": shipped_name}
    write_atomically(report_json, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    write_report(report_json, report_html, overwrite=True)
    steps.end()
    return RunReport(
        bundle=os.fspath(place / "bundle"),
        shipped=shipped_name,
        table=tuple(table),
        **results,
        export=exported[shipped].to_json(),
        notes=tuple(notes),
        seconds_by_step=steps.seconds,
        report_html=os.fspath(report_html),
        report_json=os.fspath(report_json),
    )


def _accuracy_of_chosen(searched: CompressSearch) -> float:
    """Return the accuracy on val of the candidate that a search chose."""
    [chosen] = [one for one in searched.tried if one["name"] == searched.chosen["name"]]
    return float(chosen["val_accuracy"])


def _dataset_name(images: str | Path) -> str:
    """Return what the images are called: their folder's name, or their list's without its ending."""
    return os.fsencode(data_set_name(images)).decode("utf-8", "replace")


def _keeps(drop: float | None, max_drop: float) -> bool:
    return drop is not None and drop <= max_drop


def _lost(step: str, drop: float | None, max_drop: float) -> str:
    lost = "could not be measured" if drop is None else f"was {100 * drop:.1f} points"
    return f"the loss of {step} on val {lost}, more than the {100 * max_drop:.1f} allowed"
