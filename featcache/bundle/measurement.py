"""Run a device file on real images, compare it with a reference, and refuse to claim what it does not do.

The reference of a float file is torch's float32 module. That of a quantized one is its own graph with the stored
scales computed in float32 (ONNX Runtime without any optimisation): what the integers are meant to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from featcache.datasets.labelled import LabelledImages
from featcache.errors import InputError, VerificationError
from featcache.formats.interface import FLOAT_TOLERANCE, Runner, Target
from featcache.formats.memory import resident_bytes
from featcache.graph.cost import Figures, figures_json
from featcache.images.batches import decoded_batches
from featcache.recipe import Preprocessing
from featcache.runtime.benchmark import Latency, measure_latency
from featcache.runtime.evaluation import Evaluation, score

FLOAT_AGREEMENT = 0.997
INT8_AGREEMENT = 0.98
CHANCE = 0.995  # that few images of a file at the limit are not refused
LEAST_FOR_AGREEMENT = 300  # a share of fewer images says nothing at 99.7 %
_TIE = 1e-3  # reference logits closer than this may change places


@dataclass(frozen=True, slots=True)
class FormatReport:
    """What one format of a bundle is and does, measured on its very files.

    `files`: relative to the bundle. `executed`: whether they were run here; `reason`: why not. `reference`: what their
    logits were compared with on `n_compared` images: `max_abs_diff`, and `top1_agreement` in [0, 1], None under 300.
    `disagreements`: images with another first class. `accuracy`: on the labelled test images, None without any.
    `computed_by`: where the files were not run, what computed their own program and weights instead to compare them;
    None where nothing did. It counts as no execution: neither accuracy nor latency is claimed of it. `from_files`: of a
    format that decodes and resizes by itself (the web page), what that changes: images compared with the reference,
    `disagreements`, `max_abs_diff`, and images it cannot decode; `accuracy` is then of this way. `figures`: what the
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
    top1_agreement: float | None = None
    disagreements: int | None = None
    accuracy: float | None = None
    latency_ms: Latency | None = None
    computed_by: str | None = None
    from_files: Mapping[str, Any] | None = None
    figures: Figures | None = None
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
            "top1_agreement": self.top1_agreement,
            "disagreements": self.disagreements,
            "accuracy": self.accuracy,
            "latency_ms": None if self.latency_ms is None else self.latency_ms.to_json(),
            "computed_by": self.computed_by,
            "from_files": None if self.from_files is None else dict(self.from_files),
            **figures_json(self.figures, self.resident_bytes),
        }


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


def run_all(
    sources: Sequence[Callable[[], bytes]],
    preprocessing: Preprocessing,
    *,
    reference: Runner,
    runners: Mapping[str, Runner],
    num_classes: int,
) -> Measured:
    """Return the logits of every runner for `sources`, each decoded once through the bundle's own preprocessing."""
    shape = (len(sources), num_classes)
    expected = np.zeros(shape, dtype=np.float32)
    found = {name: np.zeros(shape, dtype=np.float32) for name in runners}
    from_files: dict[str, npt.NDArray[np.float32]] = {}
    failures: dict[int, str] = {}
    with tqdm(total=len(sources), desc="compare", unit="image", disable=None) as bar:
        for batch in decoded_batches(sources, preprocessing, failures=failures):
            expected[batch.indices] = reference.run(batch.pixels)
            for name, runner in runners.items():
                found[name][batch.indices] = runner.run(batch.pixels)
                own = runner.run_files([sources[index] for index in batch.indices.tolist()])
                if own is not None:
                    from_files.setdefault(name, np.full(shape, np.nan, dtype=np.float32))[batch.indices] = own
            bar.update(len(batch.indices))
    return Measured(expected, found, failures, from_files)


def compare(
    name: str,
    reference: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    *,
    quantized: bool,
    task: str,
    tolerance: float = FLOAT_TOLERANCE,
) -> tuple[float, int, float | None]:
    """Return (largest difference, images with another first class, agreement or None under 300) of two (n, k) logits.

    Raises `VerificationError` where the device file `name` does not do what its reference does: for float files another
    value beyond `tolerance`, for quantized ones another first class on more than 2 % of the images (ties aside; of
    fewer than 300 images, on more than chance gives where it is 2 %), for any a value that is not finite.
    """
    n = len(reference)
    if not n:
        raise InputError("at least one image must decode to compare a device file with its reference, got none")
    if not np.isfinite(logits).all():
        raise VerificationError(
            f"format {name!r} must give finite logits, it gave NaN or infinity: nothing was exported"
        )
    difference = float(np.abs(logits.astype(np.float64) - reference).max())
    changed = (
        np.flatnonzero(logits.argmax(axis=1) != reference.argmax(axis=1))
        if task == "classification"
        else np.zeros(0, np.int64)
    )
    agreement = 1 - len(changed) / n if task == "classification" else None
    if not quantized:
        limit = tolerance * max(1.0, float(np.abs(reference).max()) / 10)
        if difference > limit:
            raise VerificationError(
                f"format {name!r} must give torch's logits within {limit:.2g}, it differs by {difference:.3g} on {n} "
                "images: nothing was exported; please report it with the backbone's name"
            )
    least = INT8_AGREEMENT if quantized else FLOAT_AGREEMENT
    if agreement is not None:
        rows = reference[changed]
        ordered = np.sort(rows, axis=1)
        close = (ordered[:, -1] - ordered[:, -2] < _TIE).sum() if len(rows) and rows.shape[1] > 1 else 0
        allowed = int((1 - least) * n)
        if quantized and n < LEAST_FOR_AGREEMENT:
            allowed = _plausible(n, 1 - least)
        if len(changed) - close > allowed:
            raise VerificationError(
                f"format {name!r} must give the reference's first class on {least:.1%} of the images, it gives another "
                f"on {len(changed)} of {n}: nothing was exported"
            )
    return difference, len(changed), agreement if n >= LEAST_FOR_AGREEMENT else None


def _plausible(n: int, share: float) -> int:
    """Return the least count that n independent events of probability `share` exceed in at most one of 200 cases."""
    from scipy.special import bdtr

    return next(count for count in range(n + 1) if bdtr(count, n, share) >= CHANCE)


def report_formats(
    targets: Mapping[str, Target],
    files: Mapping[str, tuple[Path, ...]],
    *,
    folder: Path,
    runners: Mapping[str, Runner],
    measured: Measured,
    labelled: LabelledImages | None,
    reference_name: str,
    classes: tuple[str, ...],
    task: str,
    quantized: bool,
    threads: int,
    pixels: npt.NDArray[np.uint8],
    figures: Mapping[str, Figures],
) -> tuple[dict[str, FormatReport], Evaluation | None]:
    """Return one report per format, and the evaluation of the first that ran; raises as `compare`.

    `pixels` (1, height, width, 3) uint8: what latency is measured with. `labelled`: the images behind `measured`, None
    for golden samples, of which no accuracy is claimed. `figures`: of every format.
    """
    used = measured.decoded()
    reports: dict[str, FormatReport] = {}
    headline: Evaluation | None = None
    for name, target in targets.items():
        names = tuple(path.relative_to(folder).as_posix() for path in files[name])
        size = sum(path.stat().st_size for path in files[name])
        if name not in runners:
            reports[name] = FormatReport(names, size, False, _unexecuted(target), figures=figures[name])
            continue
        logits = measured.by_format[name]
        difference, changed, agreement = compare(
            name, measured.reference[used], logits[used], quantized=quantized, task=task, tolerance=target.tolerance
        )
        changes = changed if task == "classification" else None
        if target.executable() is not None:
            reports[name] = FormatReport(
                names, size, False, _unexecuted(target), reference=reference_name, n_compared=len(used),
                max_abs_diff=difference, top1_agreement=agreement, disagreements=changes,
                computed_by=runners[name].described, figures=figures[name],
            )  # fmt: skip
            continue
        evaluation = None
        own = measured.from_files.get(name)
        if labelled is not None and labelled.has_labels:
            failures = dict(measured.failures)
            if own is not None:
                logits = own
                failures |= {int(i): "its own decoder cannot read it" for i in used if np.isnan(own[i]).any()}
            evaluation = score(labelled, logits, failures, classes=classes, task=task, format=name)
            headline = headline or evaluation
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        reports[name] = FormatReport(
            names,
            size,
            True,
            None,
            runtime=runners[name].described or target.version(),
            reference=reference_name,
            n_compared=len(used),
            max_abs_diff=difference,
            top1_agreement=agreement,
            disagreements=changes,
            accuracy=None if evaluation is None else evaluation.accuracy,
            latency_ms=measure_latency(runners[name], pixels, threads=threads),
            figures=figures[name],
            resident_bytes=resident_bytes(target, runners[name], files[name], image_shape=shape, threads=threads),
            from_files=None if own is None else _compare_files(name, measured.reference[used], own[used], task=task),
        )
    return reports, headline


def _compare_files(
    name: str, reference: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], *, task: str
) -> dict[str, Any]:
    """Return what a format's own decoding and resizing changes; raises as `compare` does for quantized files.

    A decoder's grey level here and there moves logits by more than a runtime does, the first class hardly ever.
    """
    read = ~np.isnan(logits).any(axis=1)
    found: dict[str, Any] = {"n_compared": int(read.sum()), "undecoded": int((~read).sum())}
    if not read.any():
        return {**found, "disagreements": None, "max_abs_diff": None}
    called = f"{name}, from image files"
    difference, changed, _ = compare(called, reference[read], logits[read], quantized=True, task=task)
    return {**found, "disagreements": changed if task == "classification" else None, "max_abs_diff": difference}


def _unexecuted(target: Target) -> str:
    """Return why the files of `target` were not run."""
    return target.executable() or "its runtime is not here"
