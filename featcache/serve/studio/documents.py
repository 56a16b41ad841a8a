"""What the addresses under ``/api`` take and give, for ``/openapi.json``; what is taken is checked by these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=1000)]
Name = Annotated[str, Field(max_length=64, examples=["pets"])]
Number = Annotated[int, Field(ge=0, lt=2**31)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request was not answered, in one line."""

    error: str


class DatasetEntry(BaseModel):
    """A data set of a cache in the workspace."""

    id: int
    cache: str = Field(description="The cache's path in the workspace.", examples=["caches/pets"])
    name: str
    input: str = Field(description="The kind of what it holds.", examples=["image", "text"])
    shown: Literal["picture", "text"] | None = Field(
        description="As what a person sees one; null: it cannot be opened."
    )
    images: int = Field(description="How many images, or texts.")
    backbone: str


class Failure(BaseModel):
    """An image or text that cannot be read, and why."""

    path: str
    reason: str


class Dataset(DatasetEntry):
    """A data set as it stands."""

    revision: int = Field(description="Grows with every change of labels.")
    generation: str = Field(description="Changes when a build has changed the cache: samples' numbers are new then.")
    undo: int = Field(description="How many changes can be taken back.")
    redo: int
    classes: list[str]
    counts: dict[str, list[int]] = Field(description="Images of each class, then unlabelled ones, in each split.")
    failures: list[Failure]


class Sample(BaseModel):
    """An image or text as it stands."""

    id: int
    path: str
    text: str | None = Field(None, description="What it says, of a text: its first 4000 characters.")
    failure: str | None = Field(None, description="Why the text cannot be read any more.")
    digest: str
    split: str
    label: str | None
    predicted: str | None = Field(None, description="What the head of the moment says.")
    probability: float | None = Field(None, description="How sure it is of that.")
    top: list[tuple[str, float]] = Field(default=[], description="The likeliest classes.")


class Order(BaseModel):
    """The samples of a view, by number, in order."""

    revision: int
    generation: str
    samples: list[int]


class SampleRequest(_Asked):
    """Which samples to describe."""

    samples: list[Number] = Field(max_length=2000)


class LabelRequest(_Asked):
    """A label for some samples; `revision`: the one that was looked at."""

    samples: list[Number] = Field(max_length=1_000_000)
    label: Text | None = Field(description="A class that there is; null takes labels away.")
    revision: Number


class RevisionRequest(_Asked):
    """The revision that was looked at."""

    revision: Number


class AcceptRequest(RevisionRequest):
    """Suggestions to accept as labels: of unlabelled train images, as sure as this."""

    threshold: float = Field(ge=0, le=1, examples=[0.95])


class ClassRequest(_Asked):
    """A class to add."""

    name: Text


class Changed(BaseModel):
    """What a change did, and where the labels stand now."""

    changed: int
    revision: int
    undo: int
    redo: int


class HeadState(BaseModel):
    """The head of the moment, and what it is worth on the labelled val images, with Wilson's 95 % interval."""

    revision: int = Field(description="Of the labels it was trained on; -1 before the first.")
    labels: int
    classes: list[str]
    correct: int
    held_out: int
    accuracy: float | None
    low: float
    high: float
    l2: float | None = Field(description="The penalty that it was trained with.")
    l2_by: str | None = Field(description="What it was chosen by: val or folds of train; null: not yet.")
    settled: bool = Field(description="Whether it is at its end; else a nearer one follows by itself.")
    milliseconds: float


class Point(BaseModel):
    """The held-out accuracy at some number of labels."""

    revision: int
    labels: int
    correct: int
    held_out: int
    low: float
    high: float


class Confusion(BaseModel):
    """How many labelled images of a split (row: label) the head gives to which class (column)."""

    split: str
    classes: list[str]
    counts: list[list[int]]


class Contender(BaseModel):
    """A head that can be compared: `id` names it in a request."""

    kind: Literal["now", "head", "dataset"]
    id: str
    name: str


class Standing(BaseModel):
    """How many of the labelled val images a head answers rightly, with Wilson's 95 % interval."""

    correct: int
    held_out: int
    low: float
    high: float


class Compared(BaseModel):
    """Two heads on the same images, and the images that only one of them gets right."""

    first: Standing
    second: Standing
    only_first: list[int]
    only_second: list[int]
    p: float = Field(description="Of McNemar's exact test: how probable flips at least this uneven are by chance.")


class Doubt(BaseModel):
    """A label that is probably wrong: heads that did not see the image think otherwise."""

    id: int
    label: str
    likelier: str
    probability: float
    own_probability: float


class Duplicates(BaseModel):
    """Groups of images that are equal byte for byte, or look nearly alike to the network."""

    groups: list[list[int]]


class PlaneMap(BaseModel):
    """Two coordinates of each sample, in [-1, 1]; null where the map lacks it."""

    kind: Literal["components", "neighbours"]
    generation: str
    points: list[tuple[float, float] | None]
    made: bool = Field(description="Whether there is one; a job of the kind map makes that of neighbours.")
    missing: int = Field(description="How many samples came after it.")
    gone: int = Field(description="How many images of it are no longer there.")


class Labels(BaseModel):
    """The number of each sample's class among the data set's classes, -1 for none."""

    revision: int
    labels: list[int]


class BuildRequest(_Asked):
    """Images or texts to bring in: those dropped under `name`, or of a folder or table on this machine."""

    kind: Literal["build"]
    name: Name
    images: Text | None = Field(None, description="A path on the server's machine; null: what was uploaded.")
    input: Name | None = Field(None, description="image or text; null: what it looks like.", examples=[None])
    backbone: Text | None = Field(None, description="A name, or of texts an encoder's directory or OWNER/MODEL.")
    weights: Name | None = None
    engine: Name | None = None
    text_column: Text | None = Field(None, description="Of a table of texts; null: by its name.")
    label_column: Text | None = None


class ShipRequest(_Asked):
    """A bundle to make of the labels as they stand."""

    kind: Literal["ship"]
    name: Name
    dataset: Number
    l2: float | None = Field(None, gt=0, lt=1e6)
    formats: list[Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,20}$")]] = Field(["onnx"], min_length=1, max_length=9)
    compress: bool = False
    max_drop: float = Field(0.01, ge=0, le=1)
    max_minutes: float = Field(5.0, gt=0, le=1440)


class MapRequest(_Asked):
    """A map of neighbours to make of a data set."""

    kind: Literal["map"]
    dataset: Number


JobRequest = Annotated[BuildRequest | ShipRequest | MapRequest, Field(discriminator="kind")]


class Job(BaseModel):
    """Long work: featcache's own commands, one after another."""

    id: int
    kind: str
    parameters: dict[str, Any]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    step: int
    steps: int | None
    doing: str | None = Field(description="The command that runs.")
    progress: dict[str, Any] | None
    created: float
    started: float | None
    ended: float | None
    result: Any = Field(description="What the last command printed with --json.")
    error: str | None


class ArtefactEntry(BaseModel):
    """A cache, head, model or bundle in the workspace."""

    kind: str
    name: str


class DeviceFormat(BaseModel):
    """A device format that bundles can hold."""

    name: str
    missing: str | None = Field(description="What it lacks on this machine; null: it can be exported.")


class ReportEntry(BaseModel):
    """A report in the workspace: of `featcache run`, or of what `featcache compress` tried."""

    name: str


class TryWays(BaseModel):
    """How a bundle is tried: what it takes, and where its own web export runs, for a page to frame."""

    input: str = Field(description="The kind of what it takes.", examples=["image", "text"])
    shown: Literal["picture", "text"] | None = Field(description="As what a person brings one.")
    address: str | None = Field(description="null: the bundle has no web export.")


class Received(BaseModel):
    """What was written."""

    files: int
    bytes: int
    left_out: list[Failure] = []


class ClassProbability(BaseModel):
    """A class and its probability."""

    label: str
    probability: float


class Tried(BaseModel):
    """What a bundle says of an image or a text."""

    label: str | None
    probability: float | None
    unknown: bool
    top: list[ClassProbability]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": said}
    for status, said in (
        (400, "What is asked makes no sense."), (403, "A foreign host or page."), (404, "There is no such thing."),
        (408, "The body came too slowly."), (409, "What was looked at has changed since."), (413, "Too large."),
        (415, "Not an image that can be read."), (503, "No room now."),
    )
}  # fmt: skip
