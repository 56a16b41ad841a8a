"""A head and its backbone as one model, and smaller ones: merge, prune, recover, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    MovedImages,
    OutOption,
    Overwrite,
    Place,
    Precision,
    ProcessorKind,
    PruneMethod,
    PrunePattern,
    PruneTarget,
    QuantizeMethod,
    RecoverOption,
    RecoverTargets,
    SearchTarget,
)
from featcache.cli.output import say
from featcache.cli.text import say_if_random, show


@app.command()
def merge(
    head: HeadArgument,
    cache: Annotated[Place, typer.Argument(metavar="CACHE", help="The cache it was trained on.")],
    out: OutOption,
    dataset: DatasetOption = None,
    images: MovedImages = None,
    golden: Annotated[Golden, typer.Option(help="Golden samples: photos of the data set, or none of them.")] = (
        Golden.photos
    ),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Put preprocessing, backbone and head together into one model."""
    from featcache.model.merging import merge as merge_model

    result = merge_model(head, cache, out=out, dataset=dataset, golden=golden.value, images=images, overwrite=overwrite)
    say_if_random(result.random_weights, result.weights)
    show(result.to_json(), as_json)


@app.command()
def prune(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    amount: Annotated[
        float | None, typer.Option(help="Share removed: of --target (channel) or weights (magnitude); none for head.")
    ] = None,
    method: Annotated[
        PruneMethod,
        typer.Option(
            help="channel makes it faster; head drops the features that a sparse head ignores, at no loss; magnitude "
            "only makes it sparser."
        ),
    ] = PruneMethod.channel,
    target: Annotated[
        PruneTarget, typer.Option(help="What channel pruning removes --amount of; latency is measured here.")
    ] = PruneTarget.macs,
    pattern: Annotated[
        PrunePattern | None,
        typer.Option(
            help="Of magnitude's zeros: ranked over all layers (global, the default), the same share in each layer, or "
            "two in every four inputs."
        ),
    ] = None,
    recover: RecoverOption = "off",
    dataset: DatasetOption = None,
    images: MovedImages = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Remove channels, unused features or weights, and refit the head on the pruned backbone's own features."""
    from featcache.compression import prune as prune_model
    from featcache.compression.recovery import parse_minutes

    result = prune_model(
        model,
        cache=cache,
        out=out,
        method=method.value,
        amount=amount,
        target=target.value,
        pattern=None if pattern is None else pattern.value,
        dataset=dataset,
        images=images,
        overwrite=overwrite,
        recover=parse_minutes(recover, option="--recover", words=("off", "auto")),
        say=say,
    )
    show(result.to_json(), as_json)


@app.command()
def recover(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    minutes: Annotated[
        str, typer.Option(metavar="auto|N", help="Minutes of training; auto: what the data are worth.")
    ] = ("auto"),
    teacher: Annotated[
        Path | None, typer.Option(help="The float MODEL, to compute more views than CACHE holds.")
    ] = None,
    targets: Annotated[RecoverTargets, typer.Option(help="Float features; also its logits; also the labels.")] = (
        RecoverTargets.logits
    ),
    views: Annotated[int | None, typer.Option(help="How many seeded views; default: what there is time for.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the images.")] = 0,
    dataset: DatasetOption = None,
    images: MovedImages = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a pruned model toward the float features in the cache, then refit its head."""
    from featcache.compression import recover as recover_model
    from featcache.compression.recovery import parse_minutes

    result = recover_model(
        model, cache=cache, out=out, minutes=parse_minutes(minutes, option="--minutes"), teacher=teacher,
        targets=targets.value, views=views, seed=seed, dataset=dataset, images=images, overwrite=overwrite,
        say=say,
    )  # fmt: skip
    show(result.to_json(), as_json)


@app.command()
def quantize(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    precision: Annotated[
        Precision,
        typer.Option(
            help="int8: integers with scales from training images or texts. int8-dynamic: a transformer's weights, "
            "rows rounded at run time. fp16: weights of half the bytes, the same answers."
        ),
    ] = Precision.int8,
    method: Annotated[QuantizeMethod, typer.Option(help="ptq only calibrates; qat then trains, rounding inside.")] = (
        QuantizeMethod.ptq
    ),
    recover: Annotated[
        str | None,
        typer.Option(metavar="off|auto|MINUTES", help="How long qat trains; default auto, and off with ptq."),
    ] = None,
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
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Largest error of the features, a share of their variance: the layers that cost most stay in floats "
            "until it holds. Default: the first convolutions, a tenth of the multiplications, do."
        ),
    ] = None,
    dataset: DatasetOption = None,
    images: MovedImages = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a model of fewer bits, by default INT8, and refit the head on the result's own features."""
    from featcache.compression import quantize as quantize_model
    from featcache.compression.recovery import parse_minutes

    minutes = None if recover is None else parse_minutes(recover, option="--recover", words=("off", "auto"))
    result = quantize_model(
        model, cache=cache, out=out, precision=precision.value, method=method.value, recover=minutes,
        head_precision=head_precision.value, processor=processor.value, max_error=max_error, dataset=dataset,
        images=images, overwrite=overwrite, say=say,
    )  # fmt: skip
    show(result.to_json(), as_json)


@app.command()
def compress(
    model: ModelArgument,
    cache: CacheOption,
    out: OutOption,
    max_drop: Annotated[
        float, typer.Option(help="Largest loss: a share of the val images, decided pair by pair.")
    ] = 0.01,
    target: Annotated[SearchTarget, typer.Option(help="What is to be least: bytes, or time on this machine.")] = (
        SearchTarget.size
    ),
    max_minutes: Annotated[float, typer.Option(help="No candidate is begun that would end after that.")] = 40.0,
    dataset: DatasetOption = None,
    images: MovedImages = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the smallest or fastest model within a budget of accuracy: pruned, recovered, INT8; refuse where none is."""
    from featcache.errors import BudgetError
    from featcache.pipeline.compressing import compress as compress_model

    try:
        result = compress_model(
            model, cache=cache, out=out, max_drop=max_drop, target=target.value, max_minutes=max_minutes,
            dataset=dataset, images=images, overwrite=overwrite, say=say,
        )  # fmt: skip
    except BudgetError as error:
        if as_json:
            show({"best": error.best}, as_json)
        raise
    show(result.to_json() if as_json else _without_lists(result.to_json()), as_json)


def _without_lists(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result without what a table of lines cannot show; it stands in the file of candidates."""
    return {name: value for name, value in result.items() if name not in ("tried", "frontier")}
