"""What one device file is and does: its entry in ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featcache.graph.cost import GraphCost, cost_json
from featcache.runtime.benchmark import Latency


@dataclass(frozen=True, slots=True)
class FormatReport:
    """What one format of a bundle is and does, measured on its very files.

    `files`: relative to the bundle. `executed`: whether they were run here; `reason`: why not. `reference`: what their
    logits were compared with on `n_compared` images: `max_abs_diff`, and `top1_agreement` in [0, 1], None under 300.
    `tolerance`: what `max_abs_diff` may be (`featcache.heads.agreement`), None for a quantized file.
    `max_probability_diff`: the largest difference of probabilities, None for regression.
    `disagreements`: images with another first class. `accuracy`: on the labelled test images, None without any.
    `computed_by`: where the files were not run, what computed their own program and weights instead to compare them;
    None where nothing did. It counts as no execution: neither accuracy nor latency is claimed of it. `from_files`: of a
    format that decodes and resizes by itself (the web page), what that changes: images compared with the reference,
    `disagreements`, `max_abs_diff`, and images it cannot decode; `accuracy` is then of this way. `cost`: what the
    graph costs by counting; `resident_bytes`: memory that the opened file took here.
    """

    files: tuple[str, ...]
    bytes: int
    executed: bool
    reason: str | None
    runtime: str | None = None
    reference: str | None = None
    n_compared: int = 0
    max_abs_diff: float | None = None
    tolerance: float | None = None
    max_probability_diff: float | None = None
    top1_agreement: float | None = None
    disagreements: int | None = None
    accuracy: float | None = None
    latency_ms: Latency | None = None
    computed_by: str | None = None
    from_files: Mapping[str, Any] | None = None
    cost: GraphCost | None = None
    resident_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "files": list(self.files),
            "bytes": self.bytes,
            "executed": self.executed,
            "reason": self.reason,
            "runtime": self.runtime,
            "reference": self.reference,
            "n_compared": self.n_compared,
            "max_abs_diff": self.max_abs_diff,
            "tolerance": self.tolerance,
            "max_probability_diff": self.max_probability_diff,
            "top1_agreement": self.top1_agreement,
            "disagreements": self.disagreements,
            "accuracy": self.accuracy,
            "latency_ms": None if self.latency_ms is None else self.latency_ms.to_json(),
            "computed_by": self.computed_by,
            "from_files": None if self.from_files is None else dict(self.from_files),
            **cost_json(self.cost, self.resident_bytes),
        }
