"""The command line: each verb parses, calls the function of the same name, and prints what it returned.

Results go to stdout (as one JSON object with ``--json``), progress and warnings to stderr. An error the user can mend
is one line and exit status 1. Heavy imports stay inside the verbs, so that ``--help`` starts at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.errors import FeatcacheError, InputError

app = typer.Typer(
    name="featcache",
    help="Run a frozen backbone once, keep its features, train heads in seconds, ship the result to a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class StoreKind(StrEnum):
    """The storage engines."""

    lmdb = "lmdb"
    zarr = "zarr"


class TaskKind(StrEnum):
    """What the labels of a CSV are for."""

    classification = "classification"
    multilabel = "multilabel"
    regression = "regression"


class PruneMethod(StrEnum):
    """What pruning removes."""

    magnitude = "magnitude"
    channel = "channel"


class HeadPrecision(StrEnum):
    """How the head's weights are stored after quantization."""

    int8 = "int8"
    float = "float"


class Golden(StrEnum):
    """Which golden samples a MODEL carries."""

    photos = "photos"
    synthetic = "synthetic"
    none = "none"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="A cache made by build.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model made by merge, prune or quantize.")]
HeadArgument = Annotated[Path, typer.Argument(metavar="HEAD", help="A head made by train.")]
CacheOption = Annotated[Path, typer.Option("--cache", help="The cache that MODEL was made from.")]
OutOption = Annotated[Path, typer.Option("--out", help="Directory to make.")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Name of the data set; needed where the cache holds several.")
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="timm name (tags and hf-hub: ids too); default: the cache's.")
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="A .safetensors file, or random:SEED; default: the model hub.")
]
ModelKwargsOption = Annotated[
    list[str] | None, typer.Option("--model-kwargs", metavar="KEY=VALUE", help="For timm, such as pad_type=same.")
]
MeanOption = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Instead of the backbone's own.")]
StdOption = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Instead of the backbone's own.")]


@app.command()
def build(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of class folders, or a CSV file.")],
    cache: Annotated[Path | None, typer.Option("--cache", help="Where; default cache_store/NAME.")] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="timm name, tag or hf-hub: id. Several: one decode, caches CACHE/BACKBONE."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="A .safetensors file, or random:SEED; default: the hub. One per --backbone."),
    ] = None,
    model_kwargs: ModelKwargsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    outputs: Annotated[str | None, typer.Option(help="What to store, comma-separated: features, stage1, …")] = None,
    views: Annotated[int | None, typer.Option(help="Stored views per image; all but the first are augmented.")] = None,
    view_seed: Annotated[int | None, typer.Option(help="Seed of the augmented views.")] = None,
    decoder: Annotated[str | None, typer.Option(help="fast (within 2 grey levels of Pillow) or pillow.")] = None,
    dct_scaling: Annotated[
        bool | None, typer.Option("--dct-scaling/--no-dct-scaling", help="Decode large JPEGs at a reduced scale.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="openvino, onnxruntime or torch.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or int8-dynamic; default: the fastest that is exact enough.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="What rows are stored as: float16 or float32.")] = None,
    store: Annotated[StoreKind, typer.Option(help="Storage of a new cache.")] = StoreKind.lmdb,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's name.")] = None,
    task: Annotated[TaskKind | None, typer.Option(help="What a CSV's labels are for.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of the drawn splits.")] = None,
    prune_missing: Annotated[bool, typer.Option(help="Free rows that no sample refers to.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another build on this cache.")] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Decoding threads; default: the processor's cores.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a cache up to date with a folder of images; only what changed is extracted."""
    from featcache.build import build_cache, build_caches

    if weights and len(weights) > 1 and len(backbones or ()) < 2:
        raise InputError(f"--weights must be given once for one backbone, got {weights!r}")
    one: dict[str, Any] = {"backbone": backbones[0] if backbones else None, "weights": weights[0] if weights else None}
    several = {"backbone": backbones, "weights": weights} if len(backbones or ()) > 1 else None
    found = (build_caches if several else build_cache)(
        images,
        cache,
        **(several or one),
        model_kwargs=_pairs(model_kwargs),
        mean=_triple(mean, "--mean"),
        std=_triple(std, "--std"),
        outputs=outputs.split(",") if outputs else None,
        views=views,
        view_seed=view_seed,
        decoder=decoder,
        dct_scaling=dct_scaling,
        engine=engine,
        precision=precision,
        dtype=dtype,
        store=store.value,
        dataset=dataset,
        task=task.value if task else None,
        split_seed=split_seed,
        prune_missing=prune_missing,
        wait_seconds=wait,
        workers=workers,
    )
    reports = found if isinstance(found, tuple) else (found,)
    for path, reason in dict.fromkeys(failure for report in reports for failure in report.failures):
        _say(f"failed: {path}: {reason}")
    for report in reports:
        _random_note(report.random_weights, report.weights)
    if several and as_json:
        _print({"caches": [report.to_json() for report in reports]}, as_json)
        return
    keys = ["cache", "images", "extracted", "reused", "failed", "rows", "wall_seconds"]
    for report in reports:
        _print(report.to_json(), as_json, keys=keys)


@app.command()
def info(
    cache: CacheArgument,
    other: Annotated[Path | None, typer.Argument(metavar="[CACHE2]", help="With --diff: the other cache.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Name every Recipe field in which two caches differ.")] = False,
    samples: Annotated[
        str | None, typer.Option(help="Write the samples to this .csv or .parquet file; -: CSV to stdout.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this data set's samples.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what a cache holds: Recipe, data sets, conflicts, failures; its samples; how it differs from another."""
    from featcache.cache import open_cache

    if diff != (other is not None):
        raise InputError("--diff must be given two caches, and two caches --diff: featcache info --diff CACHE CACHE2")
    with open_cache(cache) as opened:
        if other is not None:
            with open_cache(other) as second:
                differences = opened.recipe.differences(second.recipe, labels=True)
            shown: dict[str, Any] = {name: list(values) for name, values in differences.items()}
            equal: dict[str, Any] = {"equal": not shown}
            _print({**equal, "differences": shown} if as_json else shown or equal, as_json)
            return
        if samples is not None:
            from featcache.sample_table import write_sample_table

            count = write_sample_table(opened, samples, dataset=dataset, overwrite=overwrite)
            if samples != "-":
                _print({"samples": samples, "rows": count}, as_json)
            return
        found = opened.info()
    for conflict in found["conflicts"]:
        _say(f"equal images with different {conflict['kind']}: {', '.join(conflict['paths'])}")
    _random_note(found["random_weights"], found["recipe"]["weights"])
    _print(found, as_json)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A cache, model or bundle.")],
    repair: Annotated[bool, typer.Option(help="Drop exactly the damaged rows of a cache.")] = False,
    public_key: Annotated[Path | None, typer.Option(help="PEM file of the key a bundle must be signed with.")] = None,
    as_json: Json = False,
) -> None:
    """Check every stored byte of a cache, model or bundle; exit status 1 where something is wrong."""
    from featcache.verify import verify as check

    result = check(path, repair=repair, public_key=public_key)
    _print(result.to_json(), as_json)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def train(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="A cache made by build, or several.")],
    out: Annotated[Path | None, typer.Option("--out", help="Directory of the head to save.")] = None,
    dataset: DatasetOption = None,
    kind: Annotated[str, typer.Option(help="linear, mlp, prototype or knn; several, by commas, compared.")] = "linear",
    l1: Annotated[
        str | None, typer.Option(help="A number or auto: drives weights to exactly zero; several, by commas.")
    ] = None,
    l2: Annotated[
        str | None, typer.Option(help="A number or auto (where none is given); several, by commas, compared.")
    ] = None,
    group_l1: Annotated[
        str | None, typer.Option(help="A number or auto: drops whole features; several, by commas.")
    ] = None,
    keep_features: Annotated[float, typer.Option(help="Most features to keep, a share: group L1 chooses.")] = 1.0,
    outputs: Annotated[
        list[str] | None, typer.Option(help="Stored outputs, by commas, side by side; given again: compared.")
    ] = None,
    views: Annotated[str, typer.Option(help="Stored views to train on, comma-separated.")] = "0",
    class_weight: Annotated[str | None, typer.Option(help="balanced: every class counts the same.")] = None,
    drop_duplicates: Annotated[bool, typer.Option(help="Drop train images that also stand elsewhere.")] = False,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    mixup: Annotated[float, typer.Option(help="Beta parameter of mixup of features; 0: none.")] = 0.0,
    standard_error_rule: Annotated[bool, typer.Option(help="Strongest penalty within a standard error.")] = False,
    folds: Annotated[int, typer.Option(help="Folds to choose by where there is no val split.")] = 5,
    calibrate: Annotated[bool, typer.Option(help="Scale the logits by the val temperature.")] = False,
    unknown: Annotated[str | None, typer.Option(help="Attach a rule for unknown images: auto, …")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Distil from this cache of the same images.")] = None,
    teacher_head: Annotated[Path | None, typer.Option(help="The head trained on the teacher's cache.")] = None,
    alpha: Annotated[float, typer.Option(help="Share of the teacher's term, in [0, 1].")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Softens teacher and student alike.")] = 2.0,
    unlabelled: Annotated[str | None, typer.Option(help="Data set of unlabelled images to distil on.")] = None,
    hidden: Annotated[str, typer.Option(help="MLP: widths of hidden layers, comma-separated.")] = "512",
    neighbors: Annotated[int | None, typer.Option(help="kNN: how many; default: chosen on val.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bits on one machine.")] = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a head from a cache, in seconds; of several caches, kinds, outputs, penalties the best on val is saved."""
    from featcache.files import refuse_existing
    from featcache.train import compare, train_head

    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    sides: list[str | None] = [*outputs] if outputs else [None]
    penalties = [
        {"l1": a, "l2": b, "group_l1": c}
        for a in _penalties(l1, "--l1")
        for b in _penalties(l2, "--l2")
        for c in _penalties(group_l1, "--group-l1")
    ]
    fits = [
        (cache, one, side, strengths)
        for cache in caches
        for one in kind.split(",")
        for side in sides
        for strengths in penalties
    ]
    results = [
        train_head(
            cache,
            dataset=dataset,
            kind=one_kind,
            **strengths,
            keep_features=keep_features,
            outputs=side_by_side.split(",") if side_by_side else None,
            views=_integers(views, "--views"),
            class_weight=class_weight,
            drop_duplicates=drop_duplicates,
            label_smoothing=label_smoothing,
            mixup=mixup,
            standard_error_rule=standard_error_rule,
            folds=folds,
            calibrate=calibrate,
            unknown=unknown,
            teacher=teacher,
            teacher_head=teacher_head,
            alpha=alpha,
            temperature=temperature,
            unlabelled=unlabelled,
            hidden=_integers(hidden, "--hidden"),
            neighbors=neighbors,
            seed=seed,
        )
        for cache, one_kind, side_by_side, strengths in fits
    ]
    for result in results:
        for note in result.notes:
            _say(f"note: {note}")
    best = max(results, key=lambda result: -1.0 if result.val_score is None else result.val_score)
    if len(results) > 1:
        plain = len(results) == len(caches)
        asked = [
            " ".join(f"{name}={value}" for name, value in strengths.items() if value is not None and len(penalties) > 1)
            for *_, strengths in fits
        ]
        titles = [
            str(cache) if plain else " ".join(part for part in (str(cache), one, side, said) if part)
            for (cache, one, side, _), said in zip(fits, asked, strict=True)
        ]
        _say(compare(results, names=titles))
    if out is not None:
        best.save(out, overwrite=overwrite)
    _print(
        {**best.to_json(), "out": None if out is None else str(out)},
        as_json,
        keys=["kind", "l1", "l2", "nonzero_fraction", "features_used", "n_train", "n_classes", "train_accuracy",
              "val_accuracy", "test_accuracy", "gap", "wall_seconds", "out"],
    )  # fmt: skip


@app.command()
def distill(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder or CSV file; labels are not needed.")],
    teacher: Annotated[list[Path], typer.Option(help="Cache with the teacher's answers; repeat it for several.")],
    student: Annotated[str, typer.Option(help="timm name of the network to train from scratch.")],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to make.")],
    teacher_head: Annotated[Path | None, typer.Option(help="A head trained on that cache, for soft labels.")] = None,
    targets: Annotated[str | None, typer.Option(help="features, logits or both; default: what there is.")] = None,
    views: Annotated[int | None, typer.Option(help="How many of the cached views; default: all.")] = None,
    model_kwargs: ModelKwargsOption = None,
    input_size: Annotated[int, typer.Option(help="Side of the student's square input, in pixels.")] = 96,
    epochs: Annotated[int, typer.Option(help="Times every image is seen, in one view each.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of AdamW.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.02,
    temperature: Annotated[float, typer.Option(help="Softens teacher and student alike.")] = 2.0,
    alpha: Annotated[float, typer.Option(help="Share of the soft labels beside hard ones, in [0, 1].")] = 0.5,
    feature_weight: Annotated[float, typer.Option(help="Weight of the features beside labels.")] = 1.0,
    jitter: Annotated[float, typer.Option(help="Strength of the student's own changes of colour; 0: none.")] = 0.0,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights on one machine.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Student file, or work directory of another run, to begin from.")
    ] = None,
    classifier: Annotated[bool, typer.Option(help="Keep the classifier over the images' classes.")] = True,
    keep_work: Annotated[bool, typer.Option(help="Leave OUT.work, to make the run longer later.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small network on a cache of a large one's answers; killed, the same command goes on."""
    from featcache.distill import distill as distill_student

    report = distill_student(
        images,
        teacher,
        student=student,
        out=out,
        teacher_head=teacher_head,
        targets=targets,
        views=views,
        model_kwargs=_pairs(model_kwargs),
        input_size=input_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        temperature=temperature,
        alpha=alpha,
        feature_weight=feature_weight,
        jitter=jitter,
        precision=precision,
        seed=seed,
        start=start,
        classifier=classifier,
        keep_work=keep_work,
        overwrite=overwrite,
        say=_say,
    )
    for path, reason in report.failures:
        _say(f"failed: {path}: {reason}")
    _print(report.to_json(), as_json,
           keys=["out", "parameters", "bytes", "num_features", "images", "views", "steps", "losses", "val_accuracy",
                 "feature_bytes_per_view", "soft_label_bytes_per_view", "images_per_second"])  # fmt: skip


@app.command()
def merge(
    head: HeadArgument,
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="The cache it was trained on.")],
    out: OutOption,
    dataset: DatasetOption = None,
    golden: Annotated[Golden, typer.Option(help="Golden samples: photos of the data set, or none of them.")] = (
        Golden.photos
    ),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put preprocessing, backbone and head together into one model."""
    from featcache.merge import merge as merge_model

    result = merge_model(head, cache, out=out, dataset=dataset, golden=golden.value, overwrite=overwrite)
    _random_note(result.random_weights, result.weights)
    _print(result.to_json(), as_json)


@app.command()
def prune(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    amount: Annotated[float, typer.Option(help="Share removed: of MACs (channel) or of weights (magnitude).")],
    method: Annotated[PruneMethod, typer.Option(help="channel makes it faster, magnitude only sparser.")] = (
        PruneMethod.channel
    ),
    dataset: DatasetOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Remove channels or weights, then refit the head on the pruned backbone's own features."""
    from featcache.compress import prune as prune_model

    result = prune_model(
        model, cache=cache, out=out, method=method.value, amount=amount, dataset=dataset, overwrite=overwrite
    )
    _print(result.to_json(), as_json)


@app.command()
def quantize(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    head_precision: Annotated[HeadPrecision, typer.Option(help="Precision of the head's weights.")] = (
        HeadPrecision.int8
    ),
    dataset: DatasetOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Quantize to INT8 with scales from the training images, then refit the head on the result's own features."""
    from featcache.compress import quantize as quantize_model

    result = quantize_model(
        model, cache=cache, out=out, head_precision=head_precision.value, dataset=dataset, overwrite=overwrite
    )
    _print(result.to_json(), as_json)


@app.command()
def export(
    model: ModelArgument,
    out: OutOption,
    formats: Annotated[str, typer.Option("--format", help="Device formats, comma-separated, or all.")] = "onnx",
    images: Annotated[Path | None, typer.Option(help="Images whose test split to verify on.")] = None,
    cache: Annotated[Path | None, typer.Option(help="A cache whose test images to verify on.")] = None,
    dataset: DatasetOption = None,
    sign: Annotated[Path | None, typer.Option(help="PEM file of an Ed25519 private key to sign with.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a bundle of device files, each run and compared before it is claimed."""
    from featcache.export import export as export_model

    report = export_model(
        model, out=out, formats=formats.split(","), images=images, cache=cache, dataset=dataset, sign=sign,
        overwrite=overwrite,
    )  # fmt: skip
    _random_note(report.random_weights, report.weights)
    for name, reason in report.not_installed.items():
        _say(f"not exported: {name}: {reason}")
    values = report.to_json()
    if as_json:
        _print(values, as_json)
        return
    print(f"{'bundle':>20}  {values['bundle']}")
    for name, entry in values["formats"].items():
        shown = {key: entry[key] for key in ("bytes", "executed", "accuracy", "top1_agreement", "max_abs_diff")}
        print(f"{name:>20}  {_human(shown)}")


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle made by export.")],
    out: Annotated[Path, typer.Option("--out", help="The zip file to make.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a bundle, checked, as one zip file."""
    from featcache.export import pack as pack_bundle

    made = pack_bundle(bundle, out, overwrite=overwrite)
    _print({"archive": str(made), "bytes": made.stat().st_size}, as_json)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A zip file made by pack.")],
    out: OutOption,
    public_key: Annotated[Path | None, typer.Option(help="PEM file of the key it must be signed with.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Unpack a zipped bundle and check it; one that is changed, or would leave its folder, leaves nothing."""
    from featcache.export import unpack as unpack_bundle

    made = unpack_bundle(archive, out, public_key=public_key, overwrite=overwrite)
    _print({"bundle": str(made)}, as_json)


@app.command()
def targets(
    action: Annotated[str, typer.Argument(metavar="[list|install]", help="What to do.")] = "list",
    names: Annotated[list[str] | None, typer.Argument(metavar="FORMAT...|all", help="What to install.")] = None,
    as_json: Json = False,
) -> None:
    """List the device formats: installed or not, what each needs; 'install FORMAT...' gets what is missing."""
    from featcache.export import install_targets, list_targets

    if action not in ("list", "install"):
        raise InputError(f"targets must be followed by list or install, got {action!r}")
    found = install_targets(names or []) if action == "install" else list_targets()
    if as_json:
        _print({"targets": [status.to_json() for status in found]}, as_json)
        return
    for status in found:
        state = status.version or f"missing: {status.missing}; {status.needs}"
        unexecuted = f"; not run here: {status.unexecuted}" if status.version and status.unexecuted else ""
        print(f"{status.name:>12}  {status.kind:<12} {state}{unexecuted}")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a model.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="An image, a folder or a CSV.")],
    top: Annotated[int, typer.Option(help="How many classes to list.")] = 5,
    format: Annotated[str | None, typer.Option("--format", help="Which device file; default: the first.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Look features up here by digest before computing them.")] = None,
    as_json: Json = False,
) -> None:
    """Classify images; one line each: path, label, probability."""
    from featcache.runtime import predict as predict_images

    predictions = predict_images(bundle, images, top=top, format=format, cache=cache)
    if cache is not None:
        hits = sum(prediction.cached for prediction in predictions)
        _say(f"cache: {hits} hits, {len(predictions) - hits} misses")
    if as_json:
        print(json.dumps([prediction.to_json() for prediction in predictions], ensure_ascii=False))
        return
    for prediction in predictions:
        if prediction.reason is not None:
            _say(f"failed: {prediction.path}: {prediction.reason}")
            continue
        listed = "  ".join(f"{label} {value:.3f}" for label, value in prediction.top)
        print(f"{prediction.path}\t{'unknown' if prediction.unknown else prediction.label}\t{listed}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a model.")],
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Labelled images; of a split tree, test.")],
    format: Annotated[str | None, typer.Option("--format", help="Which device file; default: the first.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test, where the images have splits.")] = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy on labelled images, from their bytes through the bundle's own preprocessing."""
    from featcache.runtime import evaluate as evaluate_images

    result = evaluate_images(bundle, images, format=format, split=split)
    for path, reason in result.failures:
        _say(f"failed: {path}: {reason}")
    _print(result.to_json(), as_json, keys=["accuracy", "n", "format", "split", "failed"])


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle made by export.")],
    formats: Annotated[
        str | None, typer.Option("--format", help="Device formats, comma-separated; default: all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute with; default: every processor.")] = None,
    seconds: Annotated[float, typer.Option(help="How long to time each format.")] = 2.0,
    plot: Annotated[Path | None, typer.Option(help="An SVG picture to make of it.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle's device files here: latency and memory; what their graph costs is counted."""
    from featcache.files import refuse_existing
    from featcache.machine import describe_machine
    from featcache.runtime import bench as bench_bundle
    from featcache.runtime import write_plot

    if plot is not None:
        refuse_existing(plot, overwrite=overwrite)
    chosen = formats.split(",") if formats else None
    found = bench_bundle(bundle, formats=chosen, threads=threads, seconds=seconds)
    if plot is not None:
        write_plot(found, plot, overwrite=overwrite)
    if as_json:
        measured = {entry.format: entry.to_json() for entry in found}
        _print({"bundle": str(bundle), "machine": describe_machine(), "formats": measured, "plot": plot}, as_json)
        return
    slowest = max(entry.latency_ms.median for entry in found if entry.latency_ms is not None)
    for entry in found:
        if entry.latency_ms is None:
            print(f"{entry.format:>12}  {entry.bytes / 1e6:8.2f} MB  not run here: {entry.reason}")
            continue
        took, memory = entry.latency_ms, entry.resident_bytes
        resident = "memory -" if memory is None else f"memory {memory / 1e6:.1f} MB"
        bar = "█" * max(1, round(30 * took.median / slowest))
        print(
            f"{entry.format:>12}  {entry.bytes / 1e6:8.2f} MB  {took.median:8.2f} ms (p95 {took.p95:.2f}, "
            f"{took.threads} threads)  {resident:<18} {bar}"
        )
    if (counted := found[0].figures) is not None:
        _say(f"{counted.macs:,} multiply-accumulates and {counted.parameters:,} parameters, counted when exported")
    _say("power is not measured: it takes the device and a meter")


@app.command()
def run(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="A folder of class folders, or a CSV file.")],
    out: OutOption,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    model_kwargs: ModelKwargsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    l1: Annotated[str | None, typer.Option(help="A number or auto.")] = None,
    l2: Annotated[str | None, typer.Option(help="A number or auto; auto where no penalty is given.")] = None,
    prune_amount: Annotated[float, typer.Option(help="Share of MACs to prune; 0: none.")] = 0.1,
    max_drop: Annotated[float, typer.Option(help="Largest loss on val with which a compressed model goes on.")] = 0.02,
    formats: Annotated[str, typer.Option("--format", help="Device formats, comma-separated.")] = "onnx",
    store: Annotated[StoreKind, typer.Option(help="Storage of the cache.")] = StoreKind.lmdb,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Do it all: cache, head, model, pruned, INT8, verified bundle, report."""
    from featcache.run import run as run_all

    report = run_all(
        images,
        out=out,
        backbone=backbone,
        weights=weights,
        model_kwargs=_pairs(model_kwargs),
        mean=_triple(mean, "--mean"),
        std=_triple(std, "--std"),
        l1=_penalty(l1, "--l1"),
        l2=_penalty(l2, "--l2"),
        prune_amount=prune_amount,
        max_drop=max_drop,
        formats=formats.split(","),
        store=store.value,
        overwrite=overwrite,
        say=_say,
    )
    for note in report.notes:
        _say(f"note: {note}")
    if as_json:
        _print(report.to_json(), as_json)
        return
    print(f"{'model':<8} {'accuracy':>9} {'bytes':>12} {'latency':>10}")
    for row in report.table:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        latency = "-" if row["latency_ms"] is None else f"{row['latency_ms']:.2f} ms"
        print(f"{row['model']:<8} {accuracy:>9} {row['bytes']:>12,} {latency:>10}")
    for label, path in (("bundle", report.bundle), ("report", report.report_html), ("figures", report.report_json)):
        print(f"{label:<8} {path}")


@app.command()
def convert(
    cache: CacheArgument,
    out: OutOption,
    store: Annotated[StoreKind, typer.Option(help="Storage of the copy.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Copy a cache into the other kind of store; the content digest stays the same."""
    from featcache.convert import convert as convert_cache

    _print(convert_cache(cache, out=out, store=store.value, overwrite=overwrite).to_json(), as_json)


def main() -> None:
    """Run the command line; an error the user can mend is one line on stderr and exit status 1."""
    try:
        app()
    except FeatcacheError as error:
        sys.stderr.write(f"featcache: {' '.join(str(error).split())}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("featcache: interrupted; what was committed is kept, run it again to carry on\n")
        sys.exit(130)


# --- parsing and printing -------------------------------------------------------------------------------------------


def _pairs(texts: Iterable[str] | None) -> dict[str, Any] | None:
    """Return ``KEY=VALUE`` texts as a mapping; values are JSON where they parse as JSON, else text."""
    if not texts:
        return None
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--model-kwargs must be KEY=VALUE, got {text!r}")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def _triple(text: str | None, flag: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{flag} must be three numbers R,G,B, got {text!r}") from error
    return red, green, blue


def _penalty(text: str | None, flag: str) -> Any:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{flag} must be a number or 'auto', got {text!r}") from error


def _penalties(text: str | None, flag: str) -> list[Any]:
    return [None] if text is None else [_penalty(part, flag) for part in text.split(",")]


def _integers(text: str, flag: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} must be whole numbers separated by commas, got {text!r}") from error


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _random_note(is_random: bool, label: str) -> None:
    if is_random:
        _say(f"note: the backbone's weights are random ({label}); it has learned nothing")


def _print(result: Mapping[str, Any], as_json: bool, *, keys: Iterable[str] | None = None) -> None:
    """Print a result: all of it as JSON, or the `keys` a person wants to see, one a line."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=_plain))
        return
    for key in keys or result:
        print(f"{key:>20}  {_human(result[key])}")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not a JSON value: {value!r}")


def _human(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_human(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_human(inner) for inner in value) or "-"
    return str(value)
