"""What the kinds of jobs do: command lines of featcache, in their order, as anybody could type them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import MissingError
from featcache.serve.studio.workspace import Workspace, check_name

_OF_BUILD = ("input", "backbone", "weights", "engine", "text_column", "label_column")


@dataclass(frozen=True, slots=True)
class Step:
    """A command line without the word featcache, and its first word as its name."""

    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """The verb."""
        return self.arguments[0]


def build_steps(workspace: Workspace, parameters: Mapping[str, Any]) -> list[Step]:
    """Return the one step that brings a cache up to date with a folder of images, or a table of texts.

    `parameters`: ``name`` of the cache, ``images``: a path, None for what was dropped in under that name; those of
    `_OF_BUILD`: as for ``featcache build``, None for the default. Raises `MissingError` without images.
    """
    name = check_name(parameters["name"])
    named = parameters.get("images")
    images = Path(os.path.abspath(named)) if named else workspace.folder("images") / name
    if not images.exists():
        raise MissingError(f"there must be images in {str(images)!r}, there is nothing: check the path")
    given = {key: parameters[key] for key in _OF_BUILD if parameters.get(key)}
    if os.path.isdir(given.get("backbone", "")):
        given["backbone"] = os.path.abspath(given["backbone"])  # a job runs in the workspace
    extra = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    cache = workspace.place("cache", name)
    return [Step(("build", str(images), "--cache", str(cache), "--dataset", name, *extra, "--json"))]


def map_steps(workspace: Workspace, parameters: Mapping[str, Any]) -> list[Step]:
    """Return the one step that lays the images of a data set out in a plane.

    `parameters`: ``cache`` and ``data``, a cache of the workspace and its data set; ``place``: the file to make, in the
    workspace.
    """
    cache = str(workspace.existing("cache", parameters["cache"]))
    place = str(workspace.root / parameters["place"])
    return [Step(("map", cache, f"--dataset={parameters['data']}", "--out", place, "--overwrite", "--json"))]


def ship_steps(workspace: Workspace, parameters: Mapping[str, Any]) -> list[Step]:
    """Return the steps from labels to a bundle: train, merge, compress where it is wanted, export.

    `parameters`: ``cache`` and ``labelled``, a cache of the workspace and its data set with the labels; ``input``: its
    kind; ``name`` of what is made; ``l2``: the penalty, None for the one that is best on val; ``formats``;
    ``compress``: whether, with ``max_drop`` and ``max_minutes``. Networks of texts are not searched: their weights
    become integers.
    """
    name = check_name(parameters["name"])
    cache = str(workspace.existing("cache", parameters["cache"]))
    head, model, small, bundle = (
        str(workspace.place(kind, made))
        for kind, made in (("head", name), ("model", name), ("model", f"{name}-small"), ("bundle", name))
    )
    data = ("--dataset", parameters["labelled"])
    over = ("--overwrite", "--json")
    penalty = "auto" if parameters.get("l2") is None else repr(float(parameters["l2"]))
    steps = [
        Step(("train", cache, "--l2", penalty, "--drop-duplicates", "--out", head, *data, *over)),
        Step(("merge", head, cache, "--out", model, *data, *over)),
    ]
    if parameters.get("compress"):
        way: tuple[str, ...] = ("quantize", model, "--precision", "int8-dynamic")
        if parameters.get("input", "image") == "image":
            budget = ("--max-drop", str(parameters["max_drop"]), "--max-minutes", str(parameters["max_minutes"]))
            way = ("compress", model, *budget)
        steps.append(Step((*way, "--cache", cache, "--out", small, *data, *over)))
    source = small if parameters.get("compress") else model
    formats = ",".join(parameters["formats"])
    steps.append(Step(("export", source, "--out", bundle, "--format", formats, "--cache", cache, *data, *over)))
    return steps
