"""Run every device file on the same images and say what each did, and how right the first of them is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.bundle.comparison import compare_with_reference
from featcache.bundle.format_report import FormatReport
from featcache.datasets.labelled import LabelledImages
from featcache.extract.inputs.deployed import DeployedInput
from featcache.formats.interface import Converted, ModelFacts, Runner, Target
from featcache.formats.memory import resident_bytes
from featcache.graph.cost import GraphCost
from featcache.runtime.benchmark import measure_latency
from featcache.runtime.evaluation import Evaluation, score


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Logits (n, n_classes) float32 of the reference and of each runner on the same decoded images, in their order.

    `from_files`: of runners that decode and resize by themselves, the logits of that; NaN where they could not.
    """

    reference: npt.NDArray[np.float32]
    by_format: Mapping[str, npt.NDArray[np.float32]]
    failures: Mapping[int, str]
    from_files: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def decoded(self) -> npt.NDArray[np.int64]:
        """Return the indices of the images that have pixels."""
        mask = np.ones(len(self.reference), dtype=bool)
        mask[list(self.failures)] = False
        return np.flatnonzero(mask)


def run_formats(
    sources: Sequence[Callable[[], bytes]],
    deployed: DeployedInput,
    *,
    reference: Runner,
    runners: Mapping[str, Runner],
    num_classes: int,
) -> Measured:
    """Return the logits of every runner for `sources`, each prepared once as the bundle says."""
    shape = (len(sources), num_classes)
    expected = np.zeros(shape, dtype=np.float32)
    by_format = {name: np.zeros(shape, dtype=np.float32) for name in runners}
    from_files: dict[str, npt.NDArray[np.float32]] = {}
    failures: dict[int, str] = {}
    with tqdm(total=len(sources), desc="compare", unit=deployed.noun, disable=None) as bar:
        for batch in deployed.batches(sources, failures=failures):
            expected[batch.indices] = reference.run(batch.values)
            for name, runner in runners.items():
                by_format[name][batch.indices] = runner.run(batch.values)
                logits = runner.run_files([sources[index] for index in batch.indices.tolist()])
                if logits is not None:
                    from_files.setdefault(name, np.full(shape, np.nan, dtype=np.float32))[batch.indices] = logits
            bar.update(len(batch.indices))
    return Measured(expected, by_format, failures, from_files)


def report_formats(
    targets: Mapping[str, Target],
    converted: Mapping[str, Converted],
    *,
    folder: Path,
    facts: ModelFacts,
    runners: Mapping[str, Runner],
    measured: Measured,
    labelled: LabelledImages | None,
    threads: int,
    costs: Mapping[str, GraphCost],
) -> tuple[dict[str, FormatReport], Evaluation | None]:
    """Return one report per format, and the evaluation of the first that ran; raises as `compare_with_reference`.

    `labelled`: the images behind `measured`, None for golden samples, of which no accuracy is claimed. `costs`: of
    every format.
    """
    reports: dict[str, FormatReport] = {}
    headline: Evaluation | None = None
    example = facts.input.example()
    for name, target in targets.items():
        files = converted[name].files
        report = FormatReport(
            tuple(path.relative_to(folder).as_posix() for path in files), sum(path.stat().st_size for path in files),
            executed=False, reason=target.executable(), cost=costs[name],
        )  # fmt: skip
        if name in runners:
            report = dataclasses.replace(report, **_comparison(name, measured, facts, tolerance=target.tolerance))
        if report.reason is None:
            evaluation = None
            if labelled is not None and labelled.has_labels:
                logits, failures = _headline_logits(name, measured)
                evaluation = score(labelled, logits, failures, classes=facts.classes, task=facts.task, format=name)
                headline = headline or evaluation
            runner = runners[name]
            report = dataclasses.replace(
                report,
                executed=True,
                runtime=runner.described or target.version(),
                accuracy=None if evaluation is None else evaluation.accuracy,
                latency_ms=measure_latency(runner, example, threads=threads),
                resident_bytes=resident_bytes(target, runner, files, example=example, threads=threads),
            )
        elif name in runners:
            report = dataclasses.replace(report, computed_by=runners[name].described)
        reports[name] = report
    return reports, headline


def _comparison(name: str, measured: Measured, facts: ModelFacts, *, tolerance: float) -> dict[str, Any]:
    """Return the fields of a report that say how near the format's logits are to the reference's."""
    decoded = measured.decoded()
    reference, logits = measured.reference[decoded], measured.by_format[name][decoded]
    found = compare_with_reference(
        name, reference, logits, quantized=facts.quantized, task=facts.task, tolerance=tolerance
    )
    from_files = measured.from_files.get(name)
    changes = None if from_files is None else _compare_files(name, reference, from_files[decoded], task=facts.task)
    return {
        "reference": "the stored scales in float32" if facts.quantized else "torch float32",
        "n_compared": found.n,
        "max_abs_diff": found.max_abs_diff,
        "tolerance": found.tolerance,
        "max_probability_diff": found.max_probability_diff,
        "top1_agreement": found.agreement,
        "disagreements": found.changed if facts.task == "classification" else None,
        "from_files": changes,
    }


def _headline_logits(name: str, measured: Measured) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
    """Return the logits (n, n_classes) that accuracy is claimed of, and why rows do not count, by index.

    They are those of the image files where the format decodes and resizes by itself: that is what its users get.
    """
    failures = dict(measured.failures)
    logits = measured.from_files.get(name)
    if logits is None:
        return measured.by_format[name], failures
    undecoded = [index for index in measured.decoded().tolist() if np.isnan(logits[index]).any()]
    return logits, failures | dict.fromkeys(undecoded, "its own decoder cannot read it")


def _compare_files(
    name: str, reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], *, task: str
) -> dict[str, Any]:
    """Return what a format's own decoding and resizing changes; raises as for quantized files.

    A decoder's grey level here and there moves logits by more than a runtime does, the first class hardly ever.
    """
    readable = ~np.isnan(logits).any(axis=1)
    counts = {"n_compared": int(readable.sum()), "undecoded": int((~readable).sum())}
    if not readable.any():
        return {**counts, "disagreements": None, "max_abs_diff": None}
    found = compare_with_reference(
        f"{name}, from image files", reference[readable], logits[readable], quantized=True, task=task
    )
    disagreements = found.changed if task == "classification" else None
    return {**counts, "disagreements": disagreements, "max_abs_diff": found.max_abs_diff}
