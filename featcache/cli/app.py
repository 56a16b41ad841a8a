"""The typer application that each verb joins."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="featcache",
    help="Run a frozen backbone once, keep its features, train heads in seconds, ship the result to a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
