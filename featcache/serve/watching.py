"""`Watcher`: bundles replaced on disk take the place of those that answer, without a request being dropped.

A bundle is looked at when its files' stats have changed and then stayed the same for a whole interval, so that one
that is being copied is left alone. It is verified and loaded beside the old one, run once, and only then put in its
place. One that is refused is said so once, and the old one stays.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from featcache.bundle.manifest import files_below
from featcache.errors import FeatcacheError
from featcache.serve.logs import log
from featcache.serve.models import Models
from featcache.serve.places import Place, find_places

Stamp = tuple[tuple[str, int, int, int], ...]


class Watcher:
    """What bundles looked like when they were last loaded or refused, and a task that looks again.

    Parameters
    ----------
    models
        What is served.
    texts
        What was named on the command line: folders of versions are listed again each time.
    places
        The bundles that are served already.
    """

    def __init__(self, models: Models, texts: Sequence[str | os.PathLike[str]], places: Sequence[Place]) -> None:
        self._models, self._texts = models, texts
        self._judged = {place: stamp_of(place) for place in places}
        self._seen = dict(self._judged)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="featcache-watch")

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._models.settings.reload_seconds)
            for place in await loop.run_in_executor(self._thread, self._settled_changes):
                try:
                    model = await loop.run_in_executor(self._thread, self._models.load, place)
                except (FeatcacheError, OSError) as error:  # OSError: files went while they were read
                    self._models.metrics.bundle(place.name, place.version, "refused")
                    log("refused", model=place.name, version=place.version, path=str(place.path), reason=str(error))
                else:
                    outcome = "swapped" if self._models.put(model) else "loaded"
                    self._models.metrics.bundle(place.name, place.version, outcome)
                    log(outcome, model=place.name, version=place.version, path=str(place.path))

    def close(self) -> None:
        """End the thread, once what it does is done."""
        self._thread.shutdown()

    def _settled_changes(self) -> list[Place]:
        """Return the bundles that changed since they were judged and not since the last look; they count as judged."""
        changed = []
        for place in self._places():
            stamp = stamp_of(place)
            if stamp and stamp != self._judged.get(place) and stamp == self._seen.get(place):
                self._judged[place] = stamp
                changed.append(place)
            self._seen[place] = stamp
        return changed

    def _places(self) -> list[Place]:
        found = dict.fromkeys(self._judged)
        for text in self._texts:
            try:
                found.update(dict.fromkeys(find_places([text])))
            except (FeatcacheError, OSError):  # gone, or moved away for a moment: what is loaded goes on answering
                continue
        return list(found)


def stamp_of(place: Place) -> Stamp:
    """Return name, inode, size and time of every file of the bundle at `place`; empty where there is none."""
    stamp = []
    for name, path in sorted(files_below(place.path)):
        try:
            status = os.lstat(path)
        except OSError:  # it goes just now: the next look sees another stamp
            continue
        stamp.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamp)
