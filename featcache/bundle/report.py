"""``report.json``: what an export made and measured. It depends on the machine, so the manifest leaves it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from featcache.bundle.format_report import FormatReport
from featcache.bundle.thumbnails import mistake_thumbnails
from featcache.bundle.title import dataset_name, report_title
from featcache.datasets.labelled import LabelledImages
from featcache.formats.interface import ModelFacts
from featcache.runtime.evaluation import Evaluation
from featcache.system.machine import describe_machine


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export made and what it measured.

    `verified_on`: ``test`` (the test split of the images given), ``golden`` (the model's golden samples) or
    ``synthetic`` (random colours, where the model has none). `formats`: one report each. `evaluation`: of the first
    format that ran, on the test split; None without labelled images. `not_installed`: of ``all``, the formats that are
    not in the bundle because their tools are missing, and what they need.
    """

    bundle: str
    name: str
    weights: str
    random_weights: bool
    quantized: bool
    parameters: int
    bytes: int
    verified_on: str
    formats: Mapping[str, FormatReport]
    evaluation: Evaluation | None
    not_installed: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "bundle": self.bundle,
            "name": self.name,
            "weights": self.weights,
            "random_weights": self.random_weights,
            "quantized": self.quantized,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "verified_on": self.verified_on,
            "formats": {name: report.to_json() for name, report in self.formats.items()},
            "evaluation": None if self.evaluation is None else self.evaluation.to_json(),
            "not_installed": dict(self.not_installed),
        }


def report_document(
    report: ExportReport,
    facts: ModelFacts,
    labelled: LabelledImages | None,
) -> dict[str, Any]:
    """Return ``report.json``: the export, the machine, and thumbnails of the surest mistakes."""
    values = report.to_json()
    evaluation = values.pop("evaluation")
    if evaluation is not None and report.evaluation is not None and labelled is not None:
        evaluation["mistakes"] = mistake_thumbnails(report.evaluation, labelled)
    return {
        "format": "featcache.report",
        "version": 1,
        "title": report_title(dataset_name(facts.lineage["steps"]), facts.classes, task=facts.task),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "weights": report.weights,
        "random_weights": report.random_weights,
        "classes": list(facts.classes),
        "export": values,
        "evaluation": evaluation,
        "steps": list(facts.lineage["steps"]),
    }
