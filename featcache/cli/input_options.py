"""Options of kinds of inputs, the same ones wherever a verb takes such: a command gets them as one `input_options`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_PANEL = "Texts"
INPUT_OPTIONS: dict[str, Any] = {
    "text_column": Annotated[
        str | None, typer.Option(help="Column of the texts of a table; default: by its name.", rich_help_panel=_PANEL)
    ],
    "label_column": Annotated[
        str | None, typer.Option(help="Column of the labels; default: by its name.", rich_help_panel=_PANEL)
    ],
    "max_length": Annotated[
        int | None, typer.Option(help="Tokens of a text, at most; default: the encoder's.", rich_help_panel=_PANEL)
    ],
    "pooling": Annotated[
        str | None, typer.Option(help="mean, cls, last or max; default: the encoder's.", rich_help_panel=_PANEL)
    ],
    "normalize": Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Whether rows have length 1.", rich_help_panel=_PANEL),
    ],
    "prefix": Annotated[
        str | None, typer.Option(help="Put before each text, such as 'query: '.", rich_help_panel=_PANEL)
    ],
}


def takes_input_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: the command gets the options `names`, in place of its argument `input_options`, a dict."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for one in signature.parameters.values():
            kept = one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            made = [inspect.Parameter(name, kept.kind, default=None, annotation=INPUT_OPTIONS[name]) for name in names]
            parameters += made if one.name == "input_options" else [kept]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            options = {name: values.pop(name) for name in names}
            command(**values, input_options=options)

        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate
