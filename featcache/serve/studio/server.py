"""`studio`: open a workspace, listen, answer until told to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from urllib.parse import quote

from featcache.serve.guard import is_loopback
from featcache.serve.logs import log, log_as_json
from featcache.serve.server import Server, Started, listening, server_config, token_for, url_of
from featcache.serve.studio.application import make_application
from featcache.serve.studio.state import Studio


def studio(
    workspace: str | os.PathLike[str] = "studio",
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    ready: Callable[[Started], object] = lambda started: None,
) -> None:
    """Answer for `workspace` in a browser until SIGTERM or SIGINT.

    Parameters
    ----------
    workspace
        A folder, made where it is missing.
    host, port
        Where to listen; port 0: any free one. Another address than this machine's own needs a token.
    token
        What every request must bring, as ``Authorization: Bearer TOKEN`` or, for the page, once as ``?token=TOKEN``.
        None: nothing on this machine's own address, one that is made on another.
    ready
        Called once the server listens, with the address to open.

    Raises
    ------
    InputError
        Where the address cannot be had, or the workspace is a file.
    LockedError
        Where another studio has the workspace open.
    StorageError
        Where the disk refuses.
    """
    log_as_json()
    with listening(host, port) as listener:
        token = token_for(host, token)
        opened = Studio(workspace, local=is_loopback(host))
        try:
            config = server_config(make_application(opened, token=token))
            server = Server(config, stopping=opened.stop)
            url = url_of(host, listener) + ("" if token is None else f"/?token={quote(token, safe='')}")
            started = Started(url, (), server.stop)
            server.on_started = lambda: ready(started)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))
        finally:
            opened.close()
    log("stopped")
