"""The typer application that each verb joins."""

from __future__ import annotations

from typing import Annotated

import typer

from featcache.cli.output import put

app = typer.Typer(
    name="featcache",
    help="Run a frozen backbone once, keep its features, train heads in seconds, ship the result to a device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(f"featcache {version('featcache')}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that stand before a verb."""
