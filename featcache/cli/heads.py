"""Features to heads, and to student networks: train, distill."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.application import app
from featcache.cli.options import (
    ActorsOption,
    DatasetOption,
    ImagesArgument,
    Json,
    ModelKwargsOption,
    Overwrite,
    Place,
    RayOption,
)
from featcache.cli.output import say
from featcache.cli.settings import distillation_of, heads_of, shared_options, stated_settings, takes_settings
from featcache.cli.text import parse_pairs, show
from featcache.errors import InputError
from featcache.system.files import refuse_existing
from featcache.train.options import HEAD_OPTIONS, DistillationOptions, TrainOptions


@app.command()
@takes_settings(TrainOptions, *HEAD_OPTIONS.values(), DistillationOptions)
def train(
    context: typer.Context,
    caches: Annotated[list[Place], typer.Argument(metavar="CACHE...", help="A cache made by build, or several.")],
    dataset: DatasetOption = None,
    kind: Annotated[
        str,
        typer.Option(help="linear, mlp, prototype or knn; several, by commas, compared.", rich_help_panel="Kind"),
    ] = "linear",
    memory_gb: Annotated[
        float | None,
        typer.Option(
            help="Stream the rows where training would take more; default: half of all.", rich_help_panel="Data"
        ),
    ] = None,
    ray: RayOption = None,
    actors: ActorsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the head to save.", rich_help_panel="Output")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Train a head from a cache, in seconds; of several caches, kinds, outputs, penalties the best on val is saved.\f

    Raises `InputError` for settings that no head takes, and where nothing says which of several heads to save.
    """
    stated = stated_settings(context, settings)
    heads, distillation = heads_of(kind, stated), distillation_of(stated)
    options, outputs = shared_options(stated)
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    from featcache.train.comparison import compare_heads

    comparison = compare_heads(
        caches,
        heads=heads,
        outputs=outputs,
        options=options,
        distillation=distillation,
        dataset=dataset,
        memory_bytes=None if memory_gb is None else round(memory_gb * 1e9),
        ray=ray,
        actors=actors,
    )
    results, best = comparison.results, comparison.best
    for result in results:
        for note in result.notes:
            say(f"note: {note}")
    if len(results) > 1:
        for line in comparison.table().splitlines():
            say(line)
        if best is None and out is not None:
            raise InputError(
                "--out keeps the head that is best on val, got several and no val split: train the one you want alone"
            )
    shown = best or results[0]
    figure = "accuracy" if shown.score == "accuracy" else "score"
    if out is not None:
        shown.save(out, overwrite=overwrite)
    show(
        {
            **shown.to_json(),
            "out": None if out is None else str(out),
            **({"compared": [result.to_json() for result in results]} if len(results) > 1 else {}),
        },
        as_json,
        keys=["kind", "l1", "l2", "group_l1", "nonzero_fraction", "features_used", "n_train", "n_classes",
              "score", *(f"{split}_{figure}" for split in ("train", "val", "test")), "gap", "wall_seconds", "out"],
    )  # fmt: skip


@app.command()
def distill(
    images: ImagesArgument,
    teacher: Annotated[
        list[Place], typer.Option(metavar="PATH", help="Cache with the teacher's answers; repeat it for several.")
    ],
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
