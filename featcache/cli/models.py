"""A head and its backbone as one model, and smaller ones: merge, prune, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.application import app
from featcache.cli.options import (
    CacheOption,
    DatasetOption,
    Golden,
    HeadArgument,
    HeadPrecision,
    Json,
    ModelArgument,
    OutOption,
    Overwrite,
    ProcessorKind,
    PruneMethod,
)
from featcache.cli.text import say_if_random, show


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
    from featcache.model.merging import merge as merge_model

    result = merge_model(head, cache, out=out, dataset=dataset, golden=golden.value, overwrite=overwrite)
    say_if_random(result.random_weights, result.weights)
    show(result.to_json(), as_json)


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
    show(result.to_json(), as_json)


@app.command()
def quantize(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    head_precision: Annotated[HeadPrecision, typer.Option(help="Precision of the head's weights.")] = (
        HeadPrecision.int8
    ),
    processor: Annotated[
        ProcessorKind,
        typer.Option(
            help="any: weights of 129 levels, one file that answers alike everywhere. vnni, arm: of 255 levels, a "
            "little nearer to float there; on x86 without VNNI their sums saturate and answers differ."
        ),
    ] = ProcessorKind.any,
    dataset: DatasetOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Quantize to INT8 with scales from the training images, then refit the head on the result's own features."""
    from featcache.compress import quantize as quantize_model

    result = quantize_model(
        model, cache=cache, out=out, head_precision=head_precision.value, processor=processor.value, dataset=dataset,
        overwrite=overwrite,
    )  # fmt: skip
    show(result.to_json(), as_json)
