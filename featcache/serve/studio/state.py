"""`Studio`: what every address needs, opened and closed together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from featcache.serve.studio.database import Database
from featcache.serve.studio.desk import Desk
from featcache.serve.studio.events import Events
from featcache.serve.studio.jobs import Jobs
from featcache.serve.studio.maps import Maps
from featcache.serve.studio.steps import Step, build_steps, map_steps, ship_steps
from featcache.serve.studio.thumbnails import Thumbnails
from featcache.serve.studio.tries import Tries
from featcache.serve.studio.uploads import UploadBounds
from featcache.serve.studio.web_frames import WebFrames
from featcache.serve.studio.workspace import Workspace

T = TypeVar("T")


class Studio:
    """An open workspace: its database, data sets, jobs and pictures. `local`: whether only this machine can ask.

    Raises as `Workspace` and `Database`.
    """

    def __init__(self, root: str | os.PathLike[str], *, local: bool = True, bounds: UploadBounds | None = None) -> None:
        self.workspace = Workspace(root)
        self.local, self.bounds = local, bounds or UploadBounds()
        self.database = Database(self.workspace.database)
        self.events = Events()
        self.workspace.sweep()
        self.thumbnails = Thumbnails(self.workspace.folder("thumbnails"))
        self.tries = Tries(self.workspace)
        self.maps = Maps(self.workspace)
        self.frames = WebFrames(self.workspace)
        self.desk = Desk(self.workspace, self.database, self.events)
        self.jobs = Jobs(self.workspace, self.database, self.events, self._steps, self._job_done)

    def _steps(self, kind: str, parameters: Mapping[str, Any]) -> list[Step]:
        return {"build": build_steps, "map": map_steps, "ship": ship_steps}[kind](self.workspace, parameters)

    def _job_done(self) -> None:
        self.events.publish("workspace")

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what `function` returns, which may take long, without holding up other requests."""
        return await asyncio.to_thread(function, *arguments)

    def stop(self) -> None:
        """Let every listener go, so that the server can end. Callable from any thread."""
        self.events.close()

    def close(self) -> None:
        """End the threads, and close the database."""
        self.events.close()
        self.jobs.close()
        self.desk.close()
        self.thumbnails.close()
        self.tries.close()
        self.database.close()
