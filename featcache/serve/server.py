"""`serve`: load the bundles, listen, answer until told to stop, finish what is under way."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from featcache.errors import InputError
from featcache.serve.application import make_application
from featcache.serve.connections import bounded_connections
from featcache.serve.guard import is_loopback
from featcache.serve.logs import log, log_as_json
from featcache.serve.metrics import Metrics
from featcache.serve.models import Models, loaded
from featcache.serve.places import find_places
from featcache.serve.service import Service
from featcache.serve.settings import ServeSettings
from featcache.serve.watching import Watcher

_BACKLOG = 2048
_FINISH_SECONDS = 30  # what is under way may take so long after a signal
_IDLE_SECONDS = 30
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Started:
    """A server that listens: its address, the names of its models, and what makes it stop as a signal does."""

    url: str
    models: tuple[str, ...]
    stop: Callable[[], None]


def serve(
    bundles: Sequence[str | os.PathLike[str]],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    cache: str | os.PathLike[str] | None = None,
    token: str | None = None,
    settings: ServeSettings | None = None,
    ready: Callable[[Started], object] = lambda started: None,
) -> None:
    """Answer for `bundles` over HTTP until SIGTERM or SIGINT; then finish what is under way and return.

    Parameters
    ----------
    bundles
        Paths, or ``NAME=PATH``, ``NAME/VERSION=PATH``; also folders of versions.
    host, port
        Where to listen; port 0: any free one. Another address than this machine's own needs a token.
    cache
        The cache that a bundle was made from: inputs that it knows are answered from their stored features.
    token
        What every request must bring as ``Authorization: Bearer TOKEN``. None: nothing on this machine's own address,
        one that is made and logged on another.
    settings
        Bounds and threads.
    ready
        Called once the server listens.

    Raises
    ------
    InputError
        Where the address cannot be had, names clash, or no bundle was made from the cache.
    MissingError
        Where there is no such bundle or cache.
    CorruptError
        Where a bundle is not as it was exported.
    """
    log_as_json()
    bounds = settings or ServeSettings()
    places = find_places(bundles)
    metrics = Metrics()
    with listening(host, port) as listener:
        models = Models(bounds, metrics, cache=cache)
        try:
            loaded(models, places)
            service = Service(models, bounds, metrics)
            token = token_for(host, token)
            config = server_config(make_application(service, token=token))
            names = tuple(dict.fromkeys(place.name for place in places))
            server = Server(config, stopping=service.begin_to_stop)
            started = Started(url_of(host, listener), names, server.stop)
            server.on_started = lambda: ready(started)
            watcher = Watcher(models, bundles, places)
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(_answer(server, watcher, listener))
        finally:
            models.close()
    log("stopped")


def token_for(host: str, token: str | None) -> str | None:
    """Return `token`, or one that is made and logged where `host` is reached from elsewhere and none is given."""
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
        log("token made", token=token, advice="put TLS before this server: the token is sent as it is")
    return token


def server_config(application: ASGIApp) -> uvicorn.Config:
    """Return how `application` is served: no log but ours, connections that wait and the end of it bounded."""
    return uvicorn.Config(
        application, http=bounded_connections(), log_config=None, access_log=False, lifespan="off", ws="none",
        server_header=False, timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=_FINISH_SECONDS,
        backlog=_BACKLOG,
    )  # fmt: skip


async def _answer(server: Server, watcher: Watcher, listener: socket.socket) -> None:
    watching = asyncio.create_task(watcher.watch())
    watching.add_done_callback(_say_if_failed)
    try:
        await server.serve(sockets=[listener])
    finally:
        watching.cancel()
        await asyncio.to_thread(watcher.close)


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log("bug", level=logging.ERROR, error=error, doing="watching for replaced bundles, which has ended")


class Server(uvicorn.Server):
    """Uvicorn's server, which ends by returning: a signal that it has obeyed is not raised once more.

    `stopping` is called as soon as it is to end, `on_started` once it listens.
    """

    def __init__(self, config: uvicorn.Config, *, stopping: Callable[[], object]) -> None:
        super().__init__(config)
        self._stopping = stopping
        self.on_started: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.on_started()

    def stop(self) -> None:
        """Begin to stop. Callable from any thread."""
        self._stopping()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; at a second signal do not wait for what is under way."""
        self._stopping()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Obey signals inside the block, in the main thread; an ignored one (nohup) stays ignored."""
        try:
            before = {
                number: signal.signal(number, self.handle_exit)
                for number in _SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
        except ValueError:  # not the main thread: whoever started it stops it by `should_exit`
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that is bound to the address, closed after the block; `InputError` where that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host and --port must be an address that is free here, {host}:{port} cannot be had: {said}; --port 0 "
            "takes any free port"
        ) from error
    with listener:
        yield listener


def url_of(host: str, listener: socket.socket) -> str:
    """Return the address under which `listener` is reached."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"
