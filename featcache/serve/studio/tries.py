"""`Tries`: what a bundle of the workspace says of a dropped image, or of a text."""

from __future__ import annotations

import threading
from typing import Any

from featcache.runtime.classifier import Classifier, open_classifier
from featcache.runtime.prediction import describe
from featcache.serve.forms import form_of
from featcache.serve.studio.workspace import Workspace

_TOP = 5


class Tries:
    """The bundle that was tried last stays open."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = threading.Lock()
        self._open: tuple[str, Classifier] | None = None

    def classify(self, bundle: str, data: bytes) -> dict[str, Any]:
        """Return what the bundle says of the image or text `data`: its label, whether it is unknown, the top classes.

        Raises `MissingError` for a bundle that is not there, `SampleError` for what is no such input.
        """
        path = self._workspace.existing("bundle", bundle)
        stamp = f"{bundle} {(path / 'manifest.json').stat().st_mtime_ns}"
        with self._lock:
            if self._open is None or self._open[0] != stamp:
                self._close()
                self._open = stamp, open_classifier(path)
            classifier = self._open[1]
            logits = classifier.run(classifier.input.stack([form_of(classifier.input).prepare(data)]))[0]
        found = describe([""], logits[None], classifier.classes, classifier.task, top=_TOP, unknown=classifier.unknown)
        values = found[0].to_json()
        return {"unknown": False, **{name: value for name, value in values.items() if name != "path"}}

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].runner.close()
            self._open = None

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            self._close()
