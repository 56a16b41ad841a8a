"""`export`: a MODEL becomes a BUNDLE of device files, each run on images before it is claimed, or nothing at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.bundle.card import model_card, preprocess_document
from featcache.bundle.measurement import FormatReport, Measured, compare, report_formats, run_all
from featcache.bundle.signature import load_private_key
from featcache.bundle.signature import sign as signature_of
from featcache.bundle.snippet import write_snippets
from featcache.bundle.thumbnails import mistake_thumbnails
from featcache.bundle.verification import manifest_bytes, manifest_entries
from featcache.datasets.labelled import LabelledImages, cached_images, labelled_images
from featcache.errors import InputError, VerificationError
from featcache.formats.interface import ModelFacts, Runner, Target
from featcache.formats.labels import labels_text
from featcache.formats.onnx import open_unoptimised
from featcache.formats.registry import find_target, target_names
from featcache.graph.cost import Figures, count_figures
from featcache.graph.write import write_onnx
from featcache.model.golden import GOLDEN_FILE, Golden, golden_patterns
from featcache.runtime.bundle import FORMAT, MANIFEST_FILE, PREPROCESS_FILE, REPORT_FILE, SIGNATURE_FILE, VERSION
from featcache.runtime.classifier import TorchRunner
from featcache.runtime.evaluation import Evaluation
from featcache.system.files import new_directory, refuse_existing, write_atomically
from featcache.system.json import canonical_json
from featcache.system.machine import describe_machine
from featcache.system.threads import processor_count

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.model.merged import MergedModel

GOLDEN_FOLDER = "golden"


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


def export(
    model: MergedModel | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    images: str | os.PathLike[str] | None = None,
    cache: FeatureCache | str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    sign: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the BUNDLE of `model` (a MODEL directory) at `out`, verified, and return what was measured.

    `formats`: names of device formats, or ``all``, every one whose tools are installed; ``onnx`` is always made, the
    others are made from it. Every file that can be run
    here is run, from the bytes of image files through the bundle's own preprocessing: on the test split of `images` (a
    folder or CSV) or of the data set of `cache`, else on the model's golden samples. Float files must give torch's
    logits within 1e-4, quantized ones the first class of their reference. Two exports of one model are byte-identical,
    but for ``report.json``. `sign`: the PEM file of an Ed25519 private key, whose signature of the manifest is added.

    Raises `VerificationError` where a file does not do what it must, `DependencyError` where a format's tools are not
    installed, `ExistsError`; no bundle is left then, nor a half of one.
    """
    refuse_existing(Path(out), overwrite=overwrite)
    key = None if sign is None else load_private_key(sign)
    targets, missing = _chosen(formats)
    if images is not None and cache is not None:
        raise InputError("either images or a cache must be given to verify on, got both")
    merged, golden = _load(model)
    labelled = _test_images(merged, images, cache, dataset)
    place = Path(os.path.abspath(out))
    facts = _facts(merged)
    with new_directory(place, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        graph = write_onnx(merged, Path(scratch) / "model.onnx", metadata={"lineage": canonical_json(facts.lineage)})
        files = _convert(targets, graph, folder, facts)
        _describe(folder, facts, targets, files, merged, golden)
        figures = {name: count_figures(graph, integers=target.takes_scales) for name, target in targets.items()}
        measured, verified_on, reports, evaluation = _verify(
            merged, graph, targets, files, folder, labelled, golden, figures
        )
        total = sum(entry["bytes"] for entry in manifest_entries(folder).values())
        recipe = merged.recipe
        report = ExportReport(
            str(place), facts.name, recipe.weights, recipe.random_weights, facts.quantized, merged.parameter_count(),
            total, verified_on, reports, evaluation, missing,
        )  # fmt: skip
        document = _report_document(report, facts, merged, labelled, measured)
        write_atomically(folder / REPORT_FILE, _json_bytes(document))
        manifest = _manifest(folder, facts, files, figures)
        write_atomically(folder / MANIFEST_FILE, manifest)
        if key is not None:
            write_atomically(folder / SIGNATURE_FILE, signature_of(manifest, key))
    return report


def _chosen(formats: Sequence[str]) -> tuple[dict[str, Target], dict[str, str]]:
    """Return the targets to export for, and of ``all`` those that are not installed, with what they need."""
    everything = "all" in formats
    names = target_names() if everything else tuple(dict.fromkeys(["onnx", *formats]))
    for name in formats:
        if name != "all":
            find_target(name)  # an unknown name is an error beside ``all`` too
    targets = {name: find_target(name) for name in names}
    missing: dict[str, str] = {}
    for name, target in list(targets.items()):
        reason = target.available()
        if everything and reason is not None and name not in formats:
            missing[name] = f"{reason}; {target.needs}"
            del targets[name]
        else:
            target.require()
    return targets, missing


def _load(model: MergedModel | str | os.PathLike[str]) -> tuple[MergedModel, Golden | None]:
    from featcache.model.directory import GOLDEN_FOLDER, load_model

    if not isinstance(model, (str, os.PathLike)):
        return model, None
    stored = Path(model) / GOLDEN_FOLDER
    merged = load_model(model)
    return merged, Golden.load(stored) if (stored / GOLDEN_FILE).exists() else None


def _facts(model: MergedModel) -> ModelFacts:
    lineage = {
        "recipe": model.recipe.to_json(),
        "model_digest": model.recipe.model_digest,
        "weights_sha256": model.recipe.weights_sha256,
        "steps": [dict(step) for step in model.lineage],
    }
    unknown = model.fitted.unknown
    return ModelFacts(
        model.recipe.model, model.classes, model.preprocessing, lineage, quantized=model.quantization is not None,
        task=model.fitted.task, unknown=None if unknown is None else unknown.to_json(),
    )  # fmt: skip


def _test_images(
    model: MergedModel,
    images: str | os.PathLike[str] | None,
    cache: FeatureCache | str | os.PathLike[str] | None,
    dataset: str | None,
) -> LabelledImages | None:
    task = model.fitted.task
    if images is not None:
        return labelled_images(images, classes=model.classes, task=task, carve=True)
    if cache is None:
        return None
    from featcache.cache import borrow_cache

    with borrow_cache(cache) as opened:
        return cached_images(opened.samples(dataset), classes=model.classes, task=task)


def _convert(
    targets: Mapping[str, Target], graph: Path, folder: Path, facts: ModelFacts
) -> dict[str, tuple[Path, ...]]:
    files = {}
    for name, target in targets.items():
        place = folder if name == "onnx" else folder / name
        place.mkdir(exist_ok=True)
        try:
            files[name] = target.convert(graph, place, facts=facts)
        except NotImplementedError as error:  # what the tools in environments of their own can raise, and we likewise
            raise VerificationError(
                f"format {name!r} must be able to hold the whole network, it is not: {error}; nothing was exported, "
                "choose another format"
            ) from error
    return files


def _describe(
    folder: Path,
    facts: ModelFacts,
    targets: Mapping[str, Target],
    files: Mapping[str, tuple[Path, ...]],
    model: MergedModel,
    golden: Golden | None,
) -> None:
    """Write labels, preprocessing, model card, snippets and golden samples."""
    write_atomically(folder / "labels.txt", labels_text(facts.classes).encode())
    described = preprocess_document(facts, targets)
    write_atomically(folder / PREPROCESS_FILE, _json_bytes(described))
    names = {name: tuple(path.relative_to(folder).as_posix() for path in paths) for name, paths in files.items()}
    card = model_card(facts, names, weights=model.recipe.weights, random_weights=model.recipe.random_weights)
    write_atomically(folder / "model_card.md", card.encode())
    for name, text in write_snippets(facts, list(targets)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomically(folder / name, text.encode())
    if golden is not None:
        (folder / GOLDEN_FOLDER).mkdir()
        for name, data in golden.files().items():
            write_atomically(folder / GOLDEN_FOLDER / name, data)


def _verify(
    model: MergedModel,
    graph: Path,
    targets: Mapping[str, Target],
    files: Mapping[str, tuple[Path, ...]],
    folder: Path,
    labelled: LabelledImages | None,
    golden: Golden | None,
    figures: Mapping[str, Figures],
) -> tuple[Measured, str, dict[str, FormatReport], Evaluation | None]:
    quantized, threads = model.quantization is not None, processor_count()
    size = model.preprocessing
    noise = np.random.default_rng(0).integers(0, 256, size=(1, size.height, size.width, 3), dtype=np.uint8)
    with ExitStack() as stack:
        reference: Runner = open_unoptimised(graph, threads=threads) if quantized else TorchRunner(model)
        stack.enter_context(reference)
        runners = {}
        for name, target in targets.items():
            runs = target.executable() is None
            runner = (target.open if runs else target.twin)(files[name], threads=threads)
            if runner is not None:
                runners[name] = stack.enter_context(runner)
        samples, verified_on = _samples(model, labelled, golden)
        if golden is not None:
            _check_golden(golden, model, reference, quantized=quantized)
        measured = run_all(samples, size, reference=reference, runners=runners, num_classes=len(model.classes))
        reports, evaluation = report_formats(
            targets, files, folder=folder, runners=runners, measured=measured, labelled=labelled,
            reference_name="the stored scales in float32" if quantized else "torch float32", classes=model.classes,
            task=model.fitted.task, quantized=quantized, threads=threads, pixels=noise,
            figures=figures,
        )  # fmt: skip
    return measured, verified_on, reports, evaluation


def _samples(
    model: MergedModel, labelled: LabelledImages | None, golden: Golden | None
) -> tuple[list[Callable[[], bytes]], str]:
    """Return readers of the images to verify on, and what they are called."""
    if labelled is not None:
        return labelled.sources(), labelled.split or "all"
    size = model.preprocessing
    kept = golden.images if golden is not None else golden_patterns(size.height, size.width)
    called = golden.kind if golden is not None else "synthetic"
    return _readers(kept), "golden" if called == "photos" else called


def _readers(images: Sequence[bytes]) -> list[Callable[[], bytes]]:
    return [partial(bytes, data) for data in images]


def _check_golden(golden: Golden, model: MergedModel, reference: Runner, *, quantized: bool) -> None:
    """Raise `VerificationError` where the model does not give its own golden logits any more."""
    found = run_all(
        _readers(golden.images), model.preprocessing, reference=reference, runners={}, num_classes=len(model.classes)
    )
    if found.failures:
        raise VerificationError(f"golden images must decode, one does not: {next(iter(found.failures.values()))}")
    compare("golden", golden.logits, found.reference, quantized=quantized, task=model.fitted.task)


def _manifest(
    folder: Path, facts: ModelFacts, files: Mapping[str, tuple[Path, ...]], figures: Mapping[str, Figures]
) -> bytes:
    return manifest_bytes(
        {
            "format": FORMAT,
            "version": VERSION,
            "name": facts.name,
            "quantized": facts.quantized,
            "formats": {
                name: {
                    "files": [path.relative_to(folder).as_posix() for path in paths],
                    "figures": figures[name].to_json(),
                }
                for name, paths in files.items()
            },
            "lineage": dict(facts.lineage),
            "files": manifest_entries(folder),
        }
    )


def _report_document(
    report: ExportReport,
    facts: ModelFacts,
    model: MergedModel,
    labelled: LabelledImages | None,
    measured: Measured,
) -> dict[str, Any]:
    """Return ``report.json``: the export, the machine, and thumbnails of the surest mistakes."""
    values = report.to_json()
    evaluation = values.pop("evaluation")
    if evaluation is not None and report.evaluation is not None and labelled is not None:
        evaluation["mistakes"] = mistake_thumbnails(report.evaluation, labelled)
    return {
        "format": "featcache.report",
        "version": 1,
        "title": f"{len(facts.classes)} classes on {facts.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "weights": report.weights,
        "random_weights": report.random_weights,
        "classes": list(facts.classes),
        "export": values,
        "evaluation": evaluation,
        "steps": list(facts.lineage["steps"]),
    }


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n").encode()
