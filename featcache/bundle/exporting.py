"""`export`: a MODEL becomes a BUNDLE of device files, each run on images before it is claimed, or nothing at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from featcache.bundle.contents import bundle_manifest, json_bytes, write_contents
from featcache.bundle.execution import execute_formats
from featcache.bundle.manifest import manifest_entries
from featcache.bundle.report import ExportReport, report_document
from featcache.bundle.signature import load_private_key
from featcache.bundle.signature import sign as signature_of
from featcache.datasets.labelled import LabelledImages, cached_images, labelled_images
from featcache.errors import VerificationError
from featcache.extract.inputs.registry import find_input
from featcache.formats.interface import Converted, ModelFacts, Target
from featcache.formats.registry import find_target, target_names
from featcache.graph.cost import count_cost
from featcache.graph.write import write_onnx
from featcache.model.golden import GOLDEN_FILE, Golden
from featcache.runtime.bundle import MANIFEST_FILE, REPORT_FILE, SIGNATURE_FILE
from featcache.system.files import new_directory, refuse_existing, write_atomically
from featcache.system.json import canonical_json

if TYPE_CHECKING:
    from featcache.cache import FeatureCache
    from featcache.model.merged import MergedModel


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
    """Write the BUNDLE of a model, verified, and return what was measured.

    Every file that can be run here is run, from the bytes of image files through the bundle's own preprocessing. Float
    files must give torch's logits within 1e-4 of their spread (`featcache.heads.agreement`), quantized ones the first
    class of their reference. Two exports of one model are byte-identical, but for ``report.json``.

    Parameters
    ----------
    model
        A MODEL directory, or the model itself, which has no golden samples.
    out
        The directory to write.
    formats
        Names of device formats, or ``all``, every one whose tools are installed; ``onnx`` is always made, the others
        are made from it.
    images, cache
        What to verify on: the test split of a folder or CSV, or that of a data set of a cache; with both, that of the
        cache, whose images lie in the folder by now; without either, the model's golden samples.
    dataset
        Which one of the cache, where it has several.
    sign
        The PEM file of an Ed25519 private key, whose signature of the manifest is added.
    overwrite
        Replace what is at `out`.

    Returns
    -------
    ExportReport
        What each format's files are, how they compare with the model, and how fast they ran here.

    Raises
    ------
    VerificationError
        Where a file does not do what it must; as after any error, no bundle is left, nor a half of one.
    DependencyError
        Where a format's tools are not installed.
    InputError
        For an unknown format.
    MissingError
        Where the images of the cache are gone.
    ExistsError
        Where `out` exists and `overwrite` is false.

    Examples
    --------
    >>> from featcache import export
    >>> report = export("model", out="device", formats=["openvino"])
    >>> for name, made in report.formats.items():
    ...     print(name, made.files, made.executed, made.max_abs_diff <= made.tolerance)
    onnx ('model.onnx',) True True
    openvino ('openvino/model.xml', 'openvino/model.bin') True True
    """
    refuse_existing(Path(out), overwrite=overwrite)
    key = None if sign is None else load_private_key(sign)
    targets, missing = _chosen(formats)
    merged, golden = _load(model)
    labelled = _test_images(merged, images, cache, dataset)
    place = Path(os.path.abspath(out))
    facts = _facts(merged)
    recipe = merged.recipe
    with new_directory(place, overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as scratch:
        metadata = {"lineage": canonical_json(facts.lineage)}
        graph = write_onnx(merged, Path(scratch) / "model.onnx", metadata=metadata, dynamic=False)
        converted = _convert(targets, graph, folder, facts)
        write_contents(folder, facts, converted, recipe=recipe, golden=golden)
        costs = {name: count_cost(graph, integers=made.takes_scales) for name, made in converted.items()}
        execution = execute_formats(
            targets, converted, model=merged, graph=graph, folder=folder, facts=facts, labelled=labelled,
            golden=golden, costs=costs,
        )  # fmt: skip
        report = ExportReport(
            bundle=str(place),
            name=facts.name,
            weights=recipe.weights,
            random_weights=recipe.random_weights,
            quantized=facts.quantized,
            parameters=merged.parameter_count(),
            bytes=sum(entry["bytes"] for entry in manifest_entries(folder).values()),
            verified_on=execution.verified_on,
            formats=execution.reports,
            evaluation=execution.evaluation,
            not_installed=missing,
        )
        write_atomically(folder / REPORT_FILE, json_bytes(report_document(report, facts, labelled)))
        manifest = bundle_manifest(folder, facts, converted, costs)
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
    unknown = model.fitted_head.unknown
    return ModelFacts(
        model.recipe.model, model.classes, model.input, lineage, quantized=model.quantization is not None,
        halves=model.halves, dynamic=model.quantization is not None and bool(model.quantization.dynamic),
        task=model.fitted_head.task, unknown=None if unknown is None else unknown.to_json(),
    )  # fmt: skip


def _test_images(
    model: MergedModel,
    images: str | os.PathLike[str] | None,
    cache: FeatureCache | str | os.PathLike[str] | None,
    dataset: str | None,
) -> LabelledImages | None:
    task = model.fitted_head.task
    if cache is None:
        if images is None:
            return None
        scan = find_input(model.recipe.input).scan
        return labelled_images(images, classes=model.classes, task=task, carve=True, scan=scan)
    from featcache.cache import borrow_cache

    with borrow_cache(cache, images=images, dataset=dataset) as opened:
        return cached_images(opened.samples(dataset), classes=model.classes, task=task)


def _convert(targets: Mapping[str, Target], graph: Path, folder: Path, facts: ModelFacts) -> dict[str, Converted]:
    """Return what each format made, in a folder of its own below `folder`; ONNX, the reference, lies at the top."""
    converted = {}
    for name, target in tqdm(targets.items(), desc="convert", unit="format", disable=None):
        place = folder if name == "onnx" else folder / name
        place.mkdir(exist_ok=True)
        try:
            converted[name] = target.convert(graph, place, facts=facts)
        except NotImplementedError as error:  # what the tools in environments of their own can raise, and we likewise
            raise VerificationError(
                f"format {name!r} must be able to hold the whole network, it is not: {error}; nothing was exported, "
                "choose another format"
            ) from error
    return converted
