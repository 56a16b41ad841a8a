"""Over HTTP: serve, studio, and the map that the studio shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.application import app
from featcache.cli.options import CacheArgument, DatasetOption, Json, Overwrite, Place
from featcache.cli.output import finish_output, put, put_json
from featcache.cli.text import show
from featcache.errors import DependencyError

_NETWORK, _BOUNDS = "Network", "Bounds"
Host = Annotated[
    str, typer.Option(help="Address to listen on; any but this machine's own needs a token.", rich_help_panel=_NETWORK)
]
Port = Annotated[int, typer.Option(help="Port to listen on; 0: any free one.", rich_help_panel=_NETWORK)]


@contextmanager
def _needs_the_extra() -> Iterator[None]:
    """Say what to install where an import inside the block finds no package of the extra ``serve``."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("featcache"):
            raise
        raise DependencyError(
            f"serving needs the package {error.name}, which is not installed: pip install 'featcache[serve]'"
        ) from error


@app.command()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...", help="Bundles or folders of versions; NAME=BUNDLE, NAME/VERSION=BUNDLE give names."
        ),
    ],
    cache: Annotated[
        Place | None,
        typer.Option(metavar="PATH", help="Answer for images or texts that this cache knows from stored features."),
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Which device file; default: the first.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads to compute and to decode with; default: all.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Annotated[
        str | None, typer.Option(help="What requests must bring as Authorization: Bearer.", rich_help_panel=_NETWORK)
    ] = None,
    max_batch: Annotated[
        int, typer.Option(help="Inputs run at once at most; fewer where faster.", rich_help_panel=_BOUNDS)
    ] = 16,
    max_delay_ms: Annotated[
        float, typer.Option(help="How long a batch waits for inputs being prepared.", rich_help_panel=_BOUNDS)
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(help="Inputs that may wait; more are answered by 503.", rich_help_panel=_BOUNDS)
    ] = 256,
    max_body_mb: Annotated[
        float, typer.Option(help="Size of a request's body at most.", rich_help_panel=_BOUNDS)
    ] = 32.0,
    as_json: Json = False,
) -> None:
    """Answer for bundles over HTTP until stopped: images or texts, the Open Inference Protocol v2.\f

    Raises `DependencyError` where the extra ``serve`` is not installed.
    """
    with _needs_the_extra():
        from featcache.serve import ServeSettings
        from featcache.serve import serve as serve_bundles
        from featcache.serve.server import Started

    def say_ready(started: Started) -> None:
        if as_json:
            put_json({"url": started.url, "models": list(started.models)})
        else:
            put(f"serving {', '.join(started.models)} at {started.url}; {started.url}/docs says how to ask")
        finish_output()

    settings = ServeSettings(
        format=format, threads=threads, max_batch=max_batch, max_delay_ms=max_delay_ms, max_queue=max_queue,
        max_body_mb=max_body_mb,
    )  # fmt: skip
    serve_bundles(bundles, host=host, port=port, cache=cache, token=token, settings=settings, ready=say_ready)


@app.command()
def studio(
    workspace: Annotated[
        Path, typer.Argument(metavar="[WORKSPACE]", help="A folder for images or texts, labels, what is made of them.")
    ] = Path("studio"),
    host: Host = "127.0.0.1",
    port: Port = 8080,
    token: Annotated[
        str | None, typer.Option(help="What the page must be opened with, as ?token=TOKEN.", rich_help_panel=_NETWORK)
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser of this machine.")] = True,
    as_json: Json = False,
) -> None:
    """Bring images or texts, label, see, correct and ship in a browser: open a workspace until stopped.\f

    Raises `DependencyError` where the extra ``serve`` is not installed.
    """
    with _needs_the_extra():
        from featcache.serve.server import Started
        from featcache.serve.studio.server import studio as open_studio

    def say_ready(started: Started) -> None:
        if as_json:
            put_json({"url": started.url, "workspace": str(workspace)})
        else:
            put(f"the studio is at {started.url}; Ctrl+C ends it, and nothing is lost")
        finish_output()
        if browser and not as_json:
            import webbrowser

            webbrowser.open(started.url)

    open_studio(workspace, host=host, port=port, token=token, ready=say_ready)


@app.command()
def map(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option(help="File to make.", rich_help_panel="Output")],
    dataset: DatasetOption = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Lay the images or texts of a cache out in a plane for the studio, likes together: t-SNE of their features.\f

    Raises `DependencyError` where the extra ``serve`` or scikit-learn is not installed.
    """
    with _needs_the_extra():
        from featcache.serve.studio.planes import make_map as lay_out

    made = lay_out(cache, out=out, dataset=dataset, overwrite=overwrite)
    show({"map": str(out), "images": len(made.points)}, as_json)
