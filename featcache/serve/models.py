"""`Models`: every version of every model that is served, and how one takes the place of another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from featcache.errors import InputError
from featcache.runtime.bundle import open_bundle
from featcache.serve.forms import form_of
from featcache.serve.known import KnownInputs, StoredFeatures
from featcache.serve.logs import log
from featcache.serve.metrics import Metrics
from featcache.serve.places import Place, version_order
from featcache.serve.refusals import RefusedError
from featcache.serve.served import ServedModel, load_lanes
from featcache.serve.settings import ServeSettings


class Models:
    """The models of one server, by name and version.

    Parameters
    ----------
    settings
        How each of them runs.
    metrics
        Where they count.
    cache
        The directory of a cache that answers for inputs it knows, in the bundles that were made from it.

    Raises
    ------
    MissingError, FormatError, CorruptError
        As `featcache.cache.open_cache`.
    """

    def __init__(
        self, settings: ServeSettings, metrics: Metrics, *, cache: str | os.PathLike[str] | None = None
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self._stored = None if cache is None else StoredFeatures(cache)
        self._decoders = ThreadPoolExecutor(settings.thread_count, thread_name_prefix="featcache-decode")
        self._unused_because = ""
        self._versions: dict[str, dict[str, ServedModel]] = {}

    def load(self, place: Place) -> ServedModel:
        """Return the bundle at `place`, verified and loaded, not yet answering; raises as `load_lanes`, `form_of`."""
        lanes = load_lanes(place, self.settings)
        try:
            form, known = form_of(lanes.classifier.input), self._known(place)
        except BaseException:
            lanes.close()
            raise
        metrics = self.metrics.of_model(place.name, place.version)
        return ServedModel(place, lanes, form, known, self.settings, self._decoders, metrics)

    def _known(self, place: Place) -> KnownInputs | None:
        if self._stored is None:
            return None
        try:
            return KnownInputs(open_bundle(place.path), self._stored)
        except InputError as error:  # another bundle beside it may well be the cache's; `check_cache_used` sees to that
            log("cache not used", model=place.name, version=place.version, reason=str(error))
            self._unused_because = str(error)
            return None

    def check_cache_used(self) -> None:
        """Raise `InputError` where there is a cache and no model answers from it."""
        if self._stored is not None and all(model.known is None for model in self.all()):
            raise InputError(self._unused_because)

    def put(self, model: ServedModel) -> bool:
        """Let `model` answer from now on; return whether it took the place of another, which finishes what it has."""
        versions = self._versions.setdefault(model.place.name, {})
        before = versions.get(model.place.version)
        versions[model.place.version] = model
        if before is not None:
            before.retire()
        return before is not None

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return the model `name` in `version`, None for the highest; `RefusedError` (404) where there is none."""
        versions = self._versions.get(name)
        if versions is None:
            known = ", ".join(map(repr, sorted(self._versions)))
            raise RefusedError(404, f"a model's name must be one of {known}, got {name[:100]!r}")
        if version is None:
            version = self.versions(name)[-1]
        if version not in versions:
            known = ", ".join(map(repr, self.versions(name)))
            raise RefusedError(404, f"the version of {name!r} must be one of {known}, got {version[:100]!r}")
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that is there, the highest last."""
        return sorted(self._versions[name], key=version_order)

    def all(self) -> list[ServedModel]:
        """Return every model, by name and version."""
        return [self._versions[name][version] for name in sorted(self._versions) for version in self.versions(name)]

    def close(self) -> None:
        """Close every model after what it has to do, and what they share. No request may be under way."""
        for model in self.all():
            model.retire()
        self._versions.clear()
        self._decoders.shutdown()
        if self._stored is not None:
            self._stored.close()


def loaded(models: Models, places: Sequence[Place]) -> Models:
    """Return `models` with the bundles at `places` in it; raises as `load_lanes` and `Models.check_cache_used`."""
    for place in places:
        models.put(models.load(place))
        models.metrics.bundle(place.name, place.version, "loaded")
        lanes = models.get(place.name, place.version).lanes
        log(
            "loaded", model=place.name, version=place.version, path=str(place.path), threads=lanes.workers,
            batch=lanes.batch, lone_by_all=lanes.lone is not None,
        )  # fmt: skip
    models.check_cache_used()
    return models
