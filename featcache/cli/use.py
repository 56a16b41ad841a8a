"""What a bundle or model says: predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.application import app
from featcache.cli.options import Json
from featcache.cli.output import put, put_json, say
from featcache.cli.text import show


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
        say(f"cache: {hits} hits, {len(predictions) - hits} misses")
    if as_json:
        put_json([prediction.to_json() for prediction in predictions])
        return
    for prediction in predictions:
        if prediction.reason is not None:
            say(f"failed: {prediction.path}: {prediction.reason}")
            continue
        listed = "  ".join(f"{label} {value:.3f}" for label, value in prediction.top)
        put(str(prediction.path), str("unknown" if prediction.unknown else prediction.label), listed)


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
    for note in result.notes:
        say(f"note: {note}")
    for path, reason in result.failures:
        say(f"failed: {path}: {reason}")
    figures = [name for name in ("accuracy", "exact", "mean_absolute_error") if getattr(result, name) is not None]
    show(result.to_json(), as_json, keys=[*figures, "n", "format", "split", "failed"])
