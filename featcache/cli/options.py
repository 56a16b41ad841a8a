"""The options and arguments that several verbs share, and the words that some options take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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

    channel = "channel"
    head = "head"
    magnitude = "magnitude"


class PrunePattern(StrEnum):
    """Where the zeros of magnitude pruning stand."""

    everywhere = "global"
    layer = "layer"
    two_of_four = "2:4"


class PruneTarget(StrEnum):
    """What channel pruning counts."""

    macs = "macs"
    parameters = "parameters"
    latency = "latency"


class SearchTarget(StrEnum):
    """What compress makes least."""

    size = "size"
    latency = "latency"


class HeadPrecision(StrEnum):
    """How the head's weights are stored after quantization."""

    int8 = "int8"
    float = "float"


class Precision(StrEnum):
    """What a quantized model's numbers are."""

    int8 = "int8"
    int8_dynamic = "int8-dynamic"
    fp16 = "fp16"


class QuantizeMethod(StrEnum):
    """How the integers are found."""

    ptq = "ptq"
    qat = "qat"


class RecoverTargets(StrEnum):
    """What a recovered network is trained toward; each adds to the ones before."""

    features = "features"
    logits = "logits"
    labels = "labels"


class ProcessorKind(StrEnum):
    """What an INT8 model is for."""

    any = "any"
    vnni = "vnni"
    arm = "arm"


class Golden(StrEnum):
    """Which golden samples a MODEL carries."""

    photos = "photos"
    synthetic = "synthetic"
    none = "none"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel="Output")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel="Output")]
Place = str  # of what may be a URL, which a `Path` would spoil: s3:// becomes s3:/
ImagesArgument = Annotated[
    Place,
    typer.Argument(
        metavar="IMAGES",
        help="A folder of class folders, a CSV, tars or Parquet files; a table of texts; on disk or by URL.",
    ),
]
InputOption = Annotated[
    str | None, typer.Option("--input", help="What IMAGES holds: image or text; default: what it looks like.")
]
CacheArgument = Annotated[Place, typer.Argument(metavar="CACHE", help="A cache made by build.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model made by merge, prune or quantize.")]
HeadArgument = Annotated[Path, typer.Argument(metavar="HEAD", help="A head made by train.")]
CacheOption = Annotated[Place, typer.Option("--cache", metavar="PATH", help="The cache that MODEL was made from.")]
OutOption = Annotated[Path, typer.Option("--out", help="Directory to make.", rich_help_panel="Output")]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS|local", help="Compute in this Ray cluster.", rich_help_panel="Cluster"),
]
ActorsOption = Annotated[
    int | None,
    typer.Option(help="Workers that compute, at most; default: what the cluster has.", rich_help_panel="Cluster"),
]
GpusOption = Annotated[
    float,
    typer.Option(help="GPUs of each worker, such as 1 or 0.5; 0: processors.", rich_help_panel="Cluster"),
]
RecoverOption = Annotated[
    str,
    typer.Option(
        "--recover", metavar="off|auto|MINUTES", help="Then train it toward the float features: off, auto or minutes."
    ),
]
MovedImages = Annotated[
    str | None,
    typer.Option("--images", help="Where the cache's images lie now, if they were moved.", rich_help_panel="Data"),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="Name of the data set; needed where the cache holds several.", rich_help_panel="Data"
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option("--backbone", help="timm name (tags and hf-hub: ids too), or auto; default: the cache's."),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Let --backbone auto fetch a better one from the model hub.")
]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="A .safetensors file, or random:SEED; default: the model hub.")
]
ModelKwargsOption = Annotated[
    list[str] | None, typer.Option("--model-kwargs", metavar="KEY=VALUE", help="For timm, such as pad_type=same.")
]
MeanOption = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Instead of the backbone's own.")]
StdOption = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Instead of the backbone's own.")]
NoSplits = Annotated[
    bool, typer.Option("--no-splits", help="Folders named train or test are classes; a CSV's split column is not read.")
]
