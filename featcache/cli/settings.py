"""Options of a command made from the fields of option classes, and the values that were stated handed back to them.

A new field of such a class is an option at once: its name, default and help line are the field's. What a user may
write for it follows from the field's annotation, by the table `TEXTS`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from featcache.cli.options import Place
from featcache.cli.text import parse_integers, parse_penalty, parse_scales
from featcache.errors import InputError
from featcache.train.options import (
    HEAD_OPTIONS,
    DistillationOptions,
    HeadOptions,
    TrainOptions,
    options_of_kind,
)

Command = TypeVar("Command", bound=Callable[..., None])

# of ``--help``, in the order in which a person decides
PANELS = ("Data", "Penalties", "Kind", "Targets", "Fit", "After the fit", "Distillation", "Cluster", "Output")


@dataclass(frozen=True, slots=True)
class Text:
    """What a field is on the command line: `type` of the option, `read` of what was written and the flag it came by.

    `several`: what is read are candidates to compare, one or more, which the help line then says.
    """

    type: Any
    read: Callable[[Any, str], Any] = lambda value, flag: value
    several: str = ""


def _read_penalties(text: str, flag: str) -> list[Any]:
    return [parse_penalty(part, flag) for part in text.split(",")]


def _read_names(texts: list[str], flag: str) -> list[list[str]]:
    return [text.split(",") for text in texts]


TEXTS = {
    "bool": Text(bool),
    "int": Text(int),
    "int | None": Text(int | None),
    "float": Text(float),
    "float | None": Text(float | None),
    "str | None": Text(str | None),
    "CacheOrPath": Text(Place | None),
    "HeadOrPath | None": Text(Path | None),
    "Penalty | None": Text(str | None, _read_penalties, "several, by commas, compared"),
    "Scales | None": Text(str | None, parse_scales),
    "Sequence[int]": Text(str, parse_integers),
    "Sequence[str] | None": Text(list[str] | None, _read_names, "given again: compared"),
}


def flag_of(name: str) -> str:
    """Return the flag that a setting is given by."""
    return "--" + name.replace("_", "-")


def takes_settings(*classes: type, panel: str | None = None, compares: bool = True) -> Callable[[Command], Command]:
    """Return a decorator: the command gets an option for each field of `classes`, in place of its ``**settings``.

    `panel`: only the fields of this panel. `compares`: whether the help may promise that several values are compared.
    """
    fields = _fields(classes, panel)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        parameters = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        made = [_parameter(one, compares=compares) for one in fields.values()]
        keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        ordered = sorted([*keyword, *made], key=_place)
        command.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        return command

    return decorate


def _place(parameter: inspect.Parameter) -> int:
    """Return where the option's panel stands in `PANELS`; arguments and options of no panel come before them all."""
    panels = [getattr(option, "rich_help_panel", None) for option in get_args(parameter.annotation)[1:]]
    return next((PANELS.index(panel) for panel in panels if panel in PANELS), -1)


def _fields(classes: Iterable[type], panel: str | None) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields by name; one that several classes inherit stands once."""
    return {
        one.name: one
        for options in classes
        for one in dataclasses.fields(options)
        if panel is None or one.metadata["panel"] == panel
    }


def _parameter(one: dataclasses.Field[Any], *, compares: bool) -> inspect.Parameter:
    text = TEXTS[str(one.type)]
    default = None if one.default is dataclasses.MISSING else one.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    line = one.metadata["help"]
    if compares and text.several:
        line = f"{line.rstrip('.')}; {text.several}."
    option = typer.Option(help=line, rich_help_panel=one.metadata["panel"])
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(one.name, kind, default=default, annotation=Annotated[text.type, option])


def stated_settings(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `settings` that stand on the command line, read; defaults are left to the classes.

    Penalties and outputs are lists of candidates. Raises `InputError` for a text that cannot be read.
    """
    types = {name: one.type for name, one in _fields((*HEAD_OPTIONS.values(), *SHARED), None).items()}
    stated = {}
    for name, value in settings.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            stated[name] = TEXTS[str(types[name])].read(value, flag_of(name))
    return stated


SHARED = (TrainOptions, DistillationOptions)


def heads_of(kinds: str, stated: Mapping[str, Any]) -> list[HeadOptions]:
    """Return the options of each kind that stands between commas, once for every combination of candidate penalties.

    A setting goes to the kinds that have it. Raises `InputError` for one that none of them has, naming those that do.
    """
    classes = [options_of_kind(kind) for kind in kinds.split(",")]
    for name in _names_of(*HEAD_OPTIONS.values()):
        if name in stated and name not in _names_of(*classes):
            having = [kind for kind, options in HEAD_OPTIONS.items() if name in _names_of(options)]
            raise InputError(f"{flag_of(name)} belongs to --kind {' or '.join(having)}, got --kind {kinds}")
    return [head for options in classes for head in _combinations(options, stated)]


def _combinations(options: type[HeadOptions], stated: Mapping[str, Any]) -> Iterator[HeadOptions]:
    values_by_name = {name: stated[name] for name in _names_of(options) if name in stated}
    several = [
        one.name for one in dataclasses.fields(options) if TEXTS[str(one.type)].several and one.name in values_by_name
    ]
    for values in product(*(values_by_name[name] for name in several)):
        yield options(**{**values_by_name, **dict(zip(several, values, strict=True))})


def shared_options(stated: Mapping[str, Any]) -> tuple[TrainOptions, list[list[str]]]:
    """Return what goes for every kind, and the candidates of outputs."""
    settings = {name: stated[name] for name in _names_of(TrainOptions) if name in stated}
    outputs = settings.pop("outputs", [])
    return TrainOptions(**settings), outputs


def distillation_of(stated: Mapping[str, Any]) -> DistillationOptions | None:
    """Return the teacher and what belongs to it, or None; raises `InputError` for the latter without the former."""
    settings = {name: stated[name] for name in _names_of(DistillationOptions) if name in stated}
    if settings and "teacher" not in settings:
        raise InputError(f"{flag_of(next(iter(settings)))} belongs to --teacher CACHE, got no --teacher")
    return DistillationOptions(**settings) if settings else None


def single_head(stated: Mapping[str, Any]) -> HeadOptions:
    """Return the linear head of a command that trains one; raises `InputError` for several penalties to compare."""
    heads = heads_of("linear", stated)
    if len(heads) > 1:
        raise InputError("penalties must be one number or auto each, got several: compare them with featcache train")
    return heads[0]


def _names_of(*classes: type) -> list[str]:
    return [one.name for options in classes for one in dataclasses.fields(options)]
