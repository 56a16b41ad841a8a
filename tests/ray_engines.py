"""An engine for Ray's workers: what it computes is the fake's, and it says where and when in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fake import FakeEngine, fake_recipe

from featcache.engines import Features, Images
from featcache.extract.build import Extractor


class LoggedEngine(FakeEngine):
    """Waits `seconds` for each batch, as for a device, and notes the process that computed it in the folder `log`."""

    name = "onnxruntime"  # torch, which the fake is called after, would be imported in each worker
    version = "1"

    def __init__(self, log: Path | None = None, seconds: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.log, self.seconds, self.factor = log, seconds, factor

    def _infer(self, batch: Images) -> tuple[Features, ...]:
        time.sleep(self.seconds)
        if self.log is not None:
            with (self.log / str(os.getpid())).open("a") as file:
                file.write(f"{len(batch)}\n")
        (rows,) = super()._infer(batch)
        return (rows * self.factor,)


def logged_extractor(
    log: Path | None = None, seconds: float = 0.0, *, factor: float = 1.0, **changes: object
) -> Extractor:
    """Return an engine that Ray can carry to its workers, with its Recipe."""
    changes = {"engine": "onnxruntime", "engine_version": "1", **changes}
    return Extractor(LoggedEngine(log, seconds, factor), fake_recipe(**changes))


def computed(log: Path) -> dict[int, int]:
    """Return process → how many batches it has computed."""
    return {int(file.name): len(file.read_text().split()) for file in log.iterdir()}
