"""Models to device files: export, pack, unpack, targets, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.application import app
from featcache.cli.options import DatasetOption, Json, ModelArgument, OutOption, Overwrite, Place
from featcache.cli.output import put, say
from featcache.cli.text import human, say_if_random, show
from featcache.errors import InputError


@app.command()
def export(
    model: ModelArgument,
    out: OutOption,
    formats: Annotated[str, typer.Option("--format", help="Device formats, comma-separated, or all.")] = "onnx",
    images: Annotated[
        Path | None, typer.Option(help="Images whose test split to verify on; with --cache, where its images lie now.")
    ] = None,
    cache: Annotated[Place | None, typer.Option(metavar="PATH", help="A cache whose test images to verify on.")] = None,
    dataset: DatasetOption = None,
    sign: Annotated[Path | None, typer.Option(help="PEM file of an Ed25519 private key to sign with.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a bundle of device files, each run and compared before it is claimed."""
    from featcache.bundle.exporting import export as export_model

    report = export_model(
        model, out=out, formats=formats.split(","), images=images, cache=cache, dataset=dataset, sign=sign,
        overwrite=overwrite,
    )  # fmt: skip
    say_if_random(report.random_weights, report.weights)
    for name, reason in report.not_installed.items():
        say(f"not exported: {name}: {reason}")
    values = report.to_json()
    if as_json:
        show(values, as_json)
        return
    put(f"{'bundle':>20}  {values['bundle']}")
    figures = ("bytes", "executed", "accuracy", "n_compared", "disagreements", "max_probability_diff")
    for name, entry in values["formats"].items():
        shown = {key: entry[key] for key in figures}
        put(f"{name:>20}  {human(shown)}")


@app.command()
def pack(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle made by export.")],
    out: Annotated[Path, typer.Option("--out", help="The zip file to make.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a bundle, checked, as one zip file."""
    from featcache.bundle.archive import pack as pack_bundle

    made = pack_bundle(bundle, out, overwrite=overwrite)
    show({"archive": str(made), "bytes": made.stat().st_size}, as_json)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A zip file made by pack.")],
    out: OutOption,
    public_key: Annotated[Path | None, typer.Option(help="PEM file of the key it must be signed with.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Unpack a zipped bundle and check it; one that is changed, or would leave its folder, leaves nothing."""
    from featcache.bundle.archive import unpack as unpack_bundle

    made = unpack_bundle(archive, out, public_key=public_key, overwrite=overwrite)
    show({"bundle": str(made)}, as_json)


@app.command()
def targets(
    action: Annotated[str, typer.Argument(metavar="[list|install]", help="What to do.")] = "list",
    names: Annotated[list[str] | None, typer.Argument(metavar="FORMAT...|all", help="What to install.")] = None,
    as_json: Json = False,
) -> None:
    """List the device formats: installed or not, what each needs; 'install FORMAT...' gets what is missing.\f

    Raises `InputError` for another word.
    """
    from featcache.formats.status import install_targets, list_targets

    if action not in ("list", "install"):
        raise InputError(f"targets must be followed by list or install, got {action!r}")
    statuses = install_targets(names or []) if action == "install" else list_targets()
    if as_json:
        show({"targets": [status.to_json() for status in statuses]}, as_json)
        return
    for status in statuses:
        state = status.version or f"missing: {status.missing}; {status.needs}"
        unexecuted = f"; not run here: {status.unexecuted}" if status.version and status.unexecuted else ""
        put(f"{status.name:>12}  {status.kind:<12} {state}{unexecuted}")


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
    from featcache.runtime import bench as bench_bundle
    from featcache.runtime import write_plot
    from featcache.system.files import refuse_existing
    from featcache.system.machine import describe_machine

    if plot is not None:
        refuse_existing(plot, overwrite=overwrite)
    chosen = formats.split(",") if formats else None
    benchmarks = bench_bundle(bundle, formats=chosen, threads=threads, seconds=seconds)
    if plot is not None:
        write_plot(benchmarks, plot, overwrite=overwrite)
    if as_json:
        measured = {entry.format: entry.to_json() for entry in benchmarks}
        show({"bundle": str(bundle), "machine": describe_machine(), "formats": measured, "plot": plot}, as_json)
        return
    slowest = max(entry.latency_ms.median for entry in benchmarks if entry.latency_ms is not None)
    for entry in benchmarks:
        if entry.latency_ms is None:
            put(f"{entry.format:>12}  {entry.bytes / 1e6:8.2f} MB  not run here: {entry.reason}")
            continue
        took, memory = entry.latency_ms, entry.resident_bytes
        resident = "memory -" if memory is None else f"memory {memory / 1e6:.1f} MB"
        bar = "█" * max(1, round(30 * took.median / slowest))
        put(
            f"{entry.format:>12}  {entry.bytes / 1e6:8.2f} MB  {took.median:8.2f} ms (p95 {took.p95:.2f}, "
            f"{took.threads} threads)  {resident:<18} {bar}"
        )
    if (counted := benchmarks[0].cost) is not None:
        say(f"{counted.macs:,} multiply-accumulates and {counted.parameters:,} parameters, counted when exported")
    say("power is not measured: it takes the device and a meter")
