"""Open every device file that can be, run it on images, and refuse to claim what it does not do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.bundle.comparison import compare_with_reference
from featcache.bundle.format_report import FormatReport
from featcache.bundle.measurement import report_formats, run_formats
from featcache.datasets.labelled import LabelledImages
from featcache.errors import VerificationError
from featcache.formats.interface import Converted, ModelFacts, Runner, Target
from featcache.formats.onnx import open_unoptimised
from featcache.graph.cost import GraphCost
from featcache.model.golden import GOLDEN_COUNT, Golden
from featcache.runtime.classifier import TorchRunner
from featcache.runtime.evaluation import Evaluation
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.model.merged import MergedModel


@dataclass(frozen=True, slots=True)
class Execution:
    """What running the files gave. `verified_on`, `reports`, `evaluation`: as of `ExportReport`."""

    verified_on: str
    reports: Mapping[str, FormatReport]
    evaluation: Evaluation | None


def execute_formats(
    targets: Mapping[str, Target],
    converted: Mapping[str, Converted],
    *,
    model: MergedModel,
    graph: Path,
    folder: Path,
    facts: ModelFacts,
    labelled: LabelledImages | None,
    golden: Golden | None,
    costs: Mapping[str, GraphCost],
) -> Execution:
    """Return what every format does on the same images, compared with the reference.

    `graph`: the ONNX file that all were made from. `folder`: of the bundle, which the files are in. Raises
    `VerificationError` where one differs by more than it may, or the model from its own `golden` logits.
    """
    threads = processor_count()
    with ExitStack() as stack:
        reference = open_unoptimised(graph, threads=threads) if facts.quantized else TorchRunner(model)
        stack.enter_context(reference)
        runners: dict[str, Runner] = {}
        for name, target in targets.items():
            open_files = target.open if target.executable() is None else target.reference_runner
            runner = open_files(converted[name].files, threads=threads)
            if runner is not None:
                runners[name] = stack.enter_context(runner)
        sources, verified_on = _sources(facts, labelled, golden)
        if golden is not None:
            _check_golden(golden, reference, facts)
        measured = run_formats(
            sources, facts.input, reference=reference, runners=runners, num_classes=len(facts.classes)
        )
        reports, evaluation = report_formats(
            targets, converted, folder=folder, facts=facts, runners=runners, measured=measured, labelled=labelled,
            threads=threads, costs=costs,
        )  # fmt: skip
    return Execution(verified_on, reports, evaluation)


def _sources(
    facts: ModelFacts, labelled: LabelledImages | None, golden: Golden | None
) -> tuple[Sequence[Callable[[], bytes]], str]:
    """Return readers of the images to verify on, and what they are called."""
    if labelled is not None:
        return labelled.sources(), labelled.split or "all"
    images = golden.images if golden is not None else facts.input.synthetic(GOLDEN_COUNT)
    kind = golden.kind if golden is not None else "synthetic"
    return _readers(images), "golden" if kind == "photos" else kind


def _readers(images: Sequence[bytes]) -> list[Callable[[], bytes]]:
    return [partial(bytes, data) for data in images]


def _check_golden(golden: Golden, reference: Runner, facts: ModelFacts) -> None:
    """Raise `VerificationError` where the model does not give its own golden logits any more."""
    measured = run_formats(
        _readers(golden.images), facts.input, reference=reference, runners={}, num_classes=len(facts.classes)
    )
    if measured.failures:
        raise VerificationError(f"golden images must decode, one does not: {next(iter(measured.failures.values()))}")
    compare_with_reference("golden", golden.logits, measured.reference, quantized=facts.quantized, task=facts.task)
