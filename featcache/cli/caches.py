"""Images to features: backbones, build, info, verify, convert."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.application import app
from featcache.cli.input_options import INPUT_OPTIONS, takes_input_options
from featcache.cli.options import (
    ActorsOption,
    CacheArgument,
    DownloadOption,
    GpusOption,
    ImagesArgument,
    InputOption,
    Json,
    MeanOption,
    ModelKwargsOption,
    NoSplits,
    Overwrite,
    Place,
    RayOption,
    StdOption,
    StoreKind,
    TaskKind,
)
from featcache.cli.output import put, results, say
from featcache.cli.text import backbone_table, parse_pairs, parse_triple, say_if_random, show
from featcache.errors import InputError


@app.command()
def backbones(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[WEIGHTS...]", help="Weights files, folders of such, text encoders to list as well."),
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time each here, as a build would compute it.")] = False,
    as_json: Json = False,
) -> None:
    """List the backbones at hand: size, speed here, what a linear head on them reaches; nothing is downloaded."""
    from featcache.backbone.hub import hub_cache
    from featcache.backbone.probes import RANKED_ON
    from featcache.extract.at_hand import backbones as list_backbones

    notes: list[str] = []

    def tell(line: str) -> None:
        notes.append(line)
        say(line)

    found = list_backbones(paths or (), measure=measure, say=tell)
    taken = next(one.name for one in found if one.weights is None and one.rank is not None)
    if as_json:
        listed = [one.to_json() for one in found]
        show({"backbones": listed, "auto": taken, "hub_cache": str(hub_cache()), "notes": notes}, as_json)
        return
    for line in backbone_table(found):
        put(line)
    say(f"accuracies are those of a linear head; '-': not measured. --backbone auto takes the best on {RANKED_ON}")
    for one in found:
        if one.accuracy_with is not None:
            say(f"* measured with other weights of the same network, {one.accuracy_with}")
    say(f"--backbone auto takes {taken}; the hub's local cache is {hub_cache()}")


@app.command()
@takes_input_options(*INPUT_OPTIONS)
def build(
    images: ImagesArgument,
    cache: Annotated[
        Place | None,
        typer.Option("--cache", metavar="PATH", help="Where, also s3://, gs://, az://; default cache_store/NAME."),
    ] = None,
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            help="timm name, hf-hub: id or auto; of texts a directory. Several: caches CACHE/BACKBONE.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="A .safetensors file, or random:SEED; default: the hub. One per --backbone."),
    ] = None,
    download: DownloadOption = False,
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
    store: Annotated[
        StoreKind | None, typer.Option(help="Storage of a new cache; default: lmdb, at a URL zarr.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set; default: the folder's name.")] = None,
    input: InputOption = None,
    *,
    input_options: dict[str, Any],
    task: Annotated[TaskKind | None, typer.Option(help="What a table's labels are for.")] = None,
    no_splits: NoSplits = False,
    split_seed: Annotated[int | None, typer.Option(help="Seed of the drawn splits.")] = None,
    prune_missing: Annotated[bool, typer.Option(help="Free rows that no sample refers to.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew: the cache at this place goes, with its rows and data sets.")
    ] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another build on this cache.")] = 0.0,
    workers: Annotated[int | None, typer.Option(help="Decoding threads; default: the processor's cores.")] = None,
    ray: RayOption = None,
    actors: ActorsOption = None,
    gpus_per_actor: GpusOption = 0.0,
    as_json: Json = False,
) -> None:
    """Bring a cache up to date with images or texts; only what changed is extracted.\f

    Raises `InputError` for several weights of one backbone, and for --download with several backbones.
    """
    from featcache.extract.build import build_cache, build_caches

    if weights and len(weights) > 1 and len(backbones or ()) < 2:
        raise InputError(f"--weights must be given once for one backbone, got {weights!r}")
    if download and len(backbones or ()) > 1:
        raise InputError(f"--download belongs to --backbone auto, which stands alone, got {backbones!r}")
    one: dict[str, Any] = {"backbone": backbones[0] if backbones else None, "weights": weights[0] if weights else None,
                           "download": download}  # fmt: skip
    several = {"backbone": backbones, "weights": weights} if len(backbones or ()) > 1 else None
    built = (build_caches if several else build_cache)(
        images,
        cache,
        **(several or one),
        model_kwargs=parse_pairs(model_kwargs),
        mean=parse_triple(mean, "--mean"),
        std=parse_triple(std, "--std"),
        outputs=outputs.split(",") if outputs else None,
        views=views,
        view_seed=view_seed,
        decoder=decoder,
        dct_scaling=dct_scaling,
        engine=engine,
        precision=precision,
        dtype=dtype,
        store=store.value if store else None,
        dataset=dataset,
        input=input,
        input_options=input_options,
        task=task.value if task else None,
        splits=not no_splits,
        split_seed=split_seed,
        prune_missing=prune_missing,
        overwrite=overwrite,
        wait_seconds=wait,
        workers=workers,
        ray=ray,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        say=lambda note: say(f"note: {note}"),
    )
    reports = built if isinstance(built, tuple) else (built,)
    for path, reason in dict.fromkeys(failure for report in reports for failure in report.failures):
        say(f"failed: {path}: {reason}")
    for report in reports:
        say_if_random(report.random_weights, report.weights)
    if several and as_json:
        show({"caches": [report.to_json() for report in reports]}, as_json)
        return
    keys = ["cache", "images", "extracted", "reused", "failed", "rows", "wall_seconds"]
    for report in reports:
        show(report.to_json(), as_json, keys=keys)


@app.command()
def info(
    cache: CacheArgument,
    other: Annotated[Place | None, typer.Argument(metavar="[CACHE2]", help="With --diff: the other cache.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Name every Recipe field in which two caches differ.")] = False,
    samples: Annotated[
        str | None, typer.Option(help="Write the samples to this .csv or .parquet file; -: CSV to stdout.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this data set's samples.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show what a cache holds: Recipe, data sets, conflicts, failures; its samples; how it differs from another.\f

    Raises `InputError` for --diff without two caches.
    """
    from featcache.cache import open_cache

    if diff != (other is not None):
        raise InputError("--diff must be given two caches, and two caches --diff: featcache info --diff CACHE CACHE2")
    with open_cache(cache) as opened:
        if other is not None:
            with open_cache(other) as second:
                differences = opened.recipe.differences(second.recipe, labels=True)
            shown: dict[str, Any] = {name: list(values) for name, values in differences.items()}
            equal: dict[str, Any] = {"equal": not shown}
            show({**equal, "differences": shown} if as_json else shown or equal, as_json)
            return
        if samples is not None:
            from featcache.cache.table import write_sample_table

            with results() if samples == "-" else contextlib.nullcontext():
                count = write_sample_table(opened, samples, dataset=dataset, overwrite=overwrite)
            if samples != "-":
                show({"samples": samples, "rows": count}, as_json)
            return
        contents = opened.info()
    for conflict in contents["conflicts"]:
        say(f"equal images with different {conflict['kind']}: {', '.join(conflict['paths'])}")
    say_if_random(contents["random_weights"], contents["recipe"]["weights"])
    show(contents, as_json)


@app.command()
def verify(
    path: Annotated[Place, typer.Argument(metavar="PATH", help="A cache, model or bundle.")],
    repair: Annotated[bool, typer.Option(help="Drop exactly the damaged rows of a cache.")] = False,
    public_key: Annotated[Path | None, typer.Option(help="PEM file of the key a bundle must be signed with.")] = None,
    as_json: Json = False,
) -> None:
    """Check every stored byte of a cache, model or bundle; exit status 1 where something is wrong."""
    from featcache.verification import verify as check

    result = check(path, repair=repair, public_key=public_key)
    show(result.to_json(), as_json)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def convert(
    cache: CacheArgument,
    out: Annotated[
        Place, typer.Option("--out", metavar="PATH", help="Directory or URL to make.", rich_help_panel="Output")
    ],
    store: Annotated[StoreKind, typer.Option(help="Storage of the copy.")],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Copy a cache into the other kind of store; the content digest stays the same."""
    from featcache.cache.conversion import convert as convert_cache

    show(convert_cache(cache, out=out, store=store.value, overwrite=overwrite).to_json(), as_json)
