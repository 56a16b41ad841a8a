"""All of it in one verb: run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featcache.cli.application import app
from featcache.cli.input_options import INPUT_OPTIONS, takes_input_options
from featcache.cli.options import (
    BackboneOption,
    DownloadOption,
    ImagesArgument,
    InputOption,
    Json,
    MeanOption,
    ModelKwargsOption,
    NoSplits,
    OutOption,
    Overwrite,
    StdOption,
    StoreKind,
    WeightsOption,
)
from featcache.cli.output import put, say
from featcache.cli.settings import single_head, stated_settings, takes_settings
from featcache.cli.text import parse_pairs, parse_triple, show
from featcache.train.options import LinearOptions


@app.command()
@takes_input_options(*INPUT_OPTIONS)
@takes_settings(LinearOptions, panel="Penalties", compares=False)
def run(
    context: typer.Context,
    images: ImagesArgument,
    out: OutOption,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    download: DownloadOption = False,
    model_kwargs: ModelKwargsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    prune_amount: Annotated[float, typer.Option(help="Share of MACs to prune; 0: none.")] = 0.1,
    max_drop: Annotated[float, typer.Option(help="Largest loss on val with which a compressed model goes on.")] = 0.02,
    budget_minutes: Annotated[
        float | None,
        typer.Option(help="Search so long for the smallest model within --max-drop, instead of --prune-amount."),
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Device formats, comma-separated.")] = "onnx",
    store: Annotated[StoreKind, typer.Option(help="Storage of the cache.")] = StoreKind.lmdb,
    no_splits: NoSplits = False,
    input: InputOption = None,
    *,
    input_options: dict[str, Any],
    overwrite: Overwrite = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Do it all: cache, head, model, pruned, INT8, verified bundle, report."""
    from featcache.pipeline.job import run as run_all

    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        say(line)

    report = run_all(
        images,
        out=out,
        backbone=backbone,
        weights=weights,
        download=download,
        model_kwargs=parse_pairs(model_kwargs),
        mean=parse_triple(mean, "--mean"),
        std=parse_triple(std, "--std"),
        head=single_head(stated_settings(context, settings)),
        prune_amount=prune_amount,
        max_drop=max_drop,
        budget_minutes=budget_minutes,
        formats=formats.split(","),
        store=store.value,
        splits=not no_splits,
        input=input,
        input_options=input_options,
        overwrite=overwrite,
        say=tell,
    )
    later = [f"note: {note}" for note in report.notes if f"note: {note}" not in said]
    later += [f"{verb + ':':<9} {seconds:7.1f} s" for verb, seconds in report.seconds_by_step.items()]
    if as_json:
        for line in later:
            say(line)
        show(report.to_json(), as_json)
        return
    measured = "accuracy" if any(row["accuracy"] is not None for row in report.table) else "val_accuracy"
    title = "accuracy" if measured == "accuracy" else "val accuracy"
    put(f"{'model':<8} {title:>12} {'bytes':>12} {'latency':>10}")
    for row in report.table:
        accuracy = "-" if row[measured] is None else f"{100 * row[measured]:.1f} %"
        latency = "-" if row["latency_ms"] is None else f"{row['latency_ms']:.2f} ms"
        size = "-" if row["bytes"] is None else f"{row['bytes']:,}"
        put(f"{row['model']:<8} {accuracy:>12} {size:>12} {latency:>10}")
    put(f"{'shipped':<8} {report.shipped}")
    for line in later:
        say(line)
    for label, path in (("bundle", report.bundle), ("report", report.report_html), ("figures", report.report_json)):
        put(f"{label:<8} {path}")
