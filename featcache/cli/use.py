"""What a bundle or model says: predict, evaluate."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.application import app
from featcache.cli.input_options import takes_input_options
from featcache.cli.options import ActorsOption, GpusOption, Json, Place, RayOption
from featcache.cli.output import put, put_json, say
from featcache.cli.text import show
from featcache.errors import InputError


@app.command()
@takes_input_options("text_column")
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a model.")],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Images, texts, or as for build; - for standard input, one a line."),
    ],
    top: Annotated[int, typer.Option(help="How many classes to list.")] = 5,
    format: Annotated[str | None, typer.Option("--format", help="Which device file; default: the first.")] = None,
    cache: Annotated[
        Place | None, typer.Option(metavar="PATH", help="Look features up here by digest before computing them.")
    ] = None,
    *,
    input_options: dict[str, Any],
    ray: RayOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusOption = 0.0,
    as_json: Json = False,
) -> None:
    """Classify images or texts; one line each: path or text, label, probability."""
    from featcache.runtime import predict as predict_images

    predictions = predict_images(
        bundle,
        _named(images),
        top=top,
        format=format,
        cache=cache,
        ray=ray,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        input_options=input_options,
    )
    if cache is not None:
        hits = sum(prediction.cached for prediction in predictions)
        say(f"cache: {hits} hits, {len(predictions) - hits} misses")
    if as_json:
        put_json([prediction.to_json() for prediction in predictions])
    else:
        for prediction in predictions:
            if prediction.reason is not None:
                say(f"failed: {prediction.path}: {prediction.reason}")
                continue
            listed = "  ".join(f"{label} {value:.3f}" for label, value in prediction.top)
            put(str(prediction.path), "unknown" if prediction.unknown else str(prediction.label), listed)
    if all(prediction.reason is not None for prediction in predictions):
        raise InputError(
            f"at least one input must be readable, none of {len(predictions)} is: {predictions[0].path}: "
            f"{predictions[0].reason}"
        )


def _named(images: list[str]) -> list[str]:
    """Return the paths, those on standard input in the place of ``-``."""
    paths: list[str] = []
    for path in images:
        names = sys.stdin.buffer.read().splitlines() if path == "-" else [os.fsencode(path)]
        paths += [os.fsdecode(name) for name in names if name.strip()]
    if not paths:
        raise InputError("IMAGES must be one or more names, standard input held none")
    return paths


@app.command()
@takes_input_options("text_column", "label_column")
def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a model.")],
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="As for build, labelled; of a split tree, test.")],
    format: Annotated[str | None, typer.Option("--format", help="Which device file; default: the first.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test, where the images have splits.")] = None,
    *,
    input_options: dict[str, Any],
    ray: RayOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusOption = 0.0,
    as_json: Json = False,
) -> None:
    """Measure accuracy on labelled images, from their bytes through the bundle's own preprocessing."""
    from featcache.runtime import evaluate as evaluate_images

    result = evaluate_images(
        bundle,
        images,
        format=format,
        split=split,
        ray=ray,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        input_options=input_options,
    )
    for note in result.notes:
        say(f"note: {note}")
    for path, reason in result.failures:
        say(f"failed: {path}: {reason}")
    figures = [name for name in ("accuracy", "exact", "mean_absolute_error") if getattr(result, name) is not None]
    show(result.to_json(), as_json, keys=[*figures, "n", "format", "split", "unlabelled", "failed"])
