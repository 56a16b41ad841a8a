"""Features to heads, and to student networks: train, distill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.app import app
from featcache.cli.options import DatasetOption, Json, ModelKwargsOption, Overwrite
from featcache.cli.text import parse_integers, parse_pairs, parse_penalties, parse_scales, say, show


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
    block_scales: Annotated[
        str | None, typer.Option(help="auto, or a number per output, by commas: larger is penalised less.")
    ] = None,
    views: Annotated[str, typer.Option(help="Stored views to train on, comma-separated.")] = "0",
    class_weight: Annotated[str | None, typer.Option(help="balanced: every class counts the same.")] = None,
    drop_duplicates: Annotated[bool, typer.Option(help="Drop train images that also stand elsewhere.")] = False,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1).")] = 0.0,
    mixup: Annotated[float, typer.Option(help="Beta parameter of mixup of features; 0: none.")] = 0.0,
    mixup_copies: Annotated[int, typer.Option(help="Mixes per row.")] = 1,
    standard_error_rule: Annotated[bool, typer.Option(help="Strongest penalty within a standard error.")] = False,
    folds: Annotated[int, typer.Option(help="Folds to choose by where there is no val split.")] = 5,
    calibrate: Annotated[bool, typer.Option(help="Scale the logits by the val temperature.")] = False,
    unknown: Annotated[str | None, typer.Option(help="Attach a rule for unknown images: auto, …")] = None,
    unknown_accept: Annotated[float, typer.Option(help="Share of val that the rule accepts, in (0, 1].")] = 0.95,
    teacher: Annotated[Path | None, typer.Option(help="Distil from this cache of the same images.")] = None,
    teacher_head: Annotated[Path | None, typer.Option(help="The head trained on the teacher's cache.")] = None,
    alpha: Annotated[float, typer.Option(help="Share of the teacher's term, in [0, 1].")] = 0.5,
    temperature: Annotated[float, typer.Option(help="Softens teacher and student alike.")] = 2.0,
    unlabelled: Annotated[str | None, typer.Option(help="Data set of unlabelled images to distil on.")] = None,
    metric: Annotated[str | None, typer.Option(help="Prototype: cosine or euclidean; default: chosen on val.")] = None,
    neighbors: Annotated[int | None, typer.Option(help="kNN: how many; default: chosen on val.")] = None,
    sharpness: Annotated[float | None, typer.Option(help="Prototype, kNN: of the logits; default: by val.")] = None,
    hidden: Annotated[str, typer.Option(help="MLP: widths of hidden layers, comma-separated.")] = "512",
    dropout: Annotated[float, typer.Option(help="MLP: share of hidden values dropped.")] = 0.2,
    learning_rate: Annotated[float, typer.Option(help="MLP: peak rate of AdamW.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="MLP: weight decay of AdamW.")] = 1e-2,
    epochs: Annotated[int, typer.Option(help="MLP: at most; ends early where val gets no better.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bits on one machine.")] = 0,
    memory_gb: Annotated[
        float | None, typer.Option(help="Stream the rows where training would take more; default: half of all.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a head from a cache, in seconds; of several caches, kinds, outputs, penalties the best on val is saved."""
    from featcache.errors import InputError
    from featcache.system.files import refuse_existing
    from featcache.train import compare, train_head

    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    sides: list[str | None] = [*outputs] if outputs else [None]
    penalties = [
        {"l1": a, "l2": b, "group_l1": c}
        for a in parse_penalties(l1, "--l1")
        for b in parse_penalties(l2, "--l2")
        for c in parse_penalties(group_l1, "--group-l1")
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
            block_scales=parse_scales(block_scales, "--block-scales"),
            views=parse_integers(views, "--views"),
            class_weight=class_weight,
            drop_duplicates=drop_duplicates,
            label_smoothing=label_smoothing,
            mixup=mixup,
            mixup_copies=mixup_copies,
            standard_error_rule=standard_error_rule,
            folds=folds,
            calibrate=calibrate,
            unknown=unknown,
            unknown_accept=unknown_accept,
            teacher=teacher,
            teacher_head=teacher_head,
            alpha=alpha,
            temperature=temperature,
            unlabelled=unlabelled,
            metric=metric,
            neighbors=neighbors,
            sharpness=sharpness,
            hidden=parse_integers(hidden, "--hidden"),
            dropout=dropout,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            epochs=epochs,
            seed=seed,
            memory_bytes=None if memory_gb is None else round(memory_gb * 1e9),
        )
        for cache, one_kind, side_by_side, strengths in fits
    ]
    for result in results:
        for note in result.notes:
            say(f"note: {note}")
    scored = [result for result in results if result.val_score is not None]
    best = max(scored or results, key=lambda result: result.val_score or 0.0)
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
        say(compare(results, names=titles))
        if not scored and out is not None:
            raise InputError(
                "--out keeps the head that is best on val, got several and no val split: train the one you want alone"
            )
    figure = "accuracy" if best.score == "accuracy" else "score"
    if out is not None:
        best.save(out, overwrite=overwrite)
    show(
        {
            **best.to_json(),
            "out": None if out is None else str(out),
            **({"compared": [result.to_json() for result in results]} if len(results) > 1 else {}),
        },
        as_json,
        keys=["kind", "l1", "l2", "group_l1", "nonzero_fraction", "features_used", "n_train", "n_classes",
              "score", *(f"{split}_{figure}" for split in ("train", "val", "test")), "gap", "wall_seconds", "out"],
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
    from featcache.distillation import distill as distill_student

    report = distill_student(
        images,
        teacher,
        student=student,
        out=out,
        teacher_head=teacher_head,
        targets=targets,
        views=views,
        model_kwargs=parse_pairs(model_kwargs),
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
        say=say,
    )
    for path, reason in report.failures:
        say(f"failed: {path}: {reason}")
    show(report.to_json(), as_json,
           keys=["out", "parameters", "bytes", "num_features", "images", "views", "steps", "losses", "val_accuracy",
                 "feature_bytes_per_view", "soft_label_bytes_per_view", "images_per_second"])  # fmt: skip
