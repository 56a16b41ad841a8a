"""What a server counts, for Prometheus: requests, errors, batches, latencies, answers from the cache, swaps."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_MODEL = ("model", "version")


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "featcache_requests", "Requests answered.", ("endpoint", "status"), registry=self.registry
        )
        self._errors = Counter(
            "featcache_errors", "Requests answered by an error.", ("endpoint", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "featcache_request_seconds", "From a request's head to its answer's end.", ("endpoint",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("featcache_waiting_images", "Inputs that wait or are worked on.", registry=self.registry)
        self._images = Counter(
            "featcache_images", "Inputs answered: computed, cached, or failed.", (*_MODEL, "outcome"),
            registry=self.registry,
        )  # fmt: skip
        self._batch_images = Histogram(
            "featcache_batch_images", "Inputs in a batch.", _MODEL, buckets=_IMAGES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "featcache_batch_seconds", "How long the model took for a batch.", _MODEL, buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._loads = Counter(
            "featcache_bundle_loads", "Bundles verified: loaded, swapped for another, or refused.",
            (*_MODEL, "outcome"), registry=self.registry,
        )  # fmt: skip

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request to `endpoint`, the pattern of its path."""
        self._requests.labels(endpoint, str(status)).inc()
        self._request_seconds.labels(endpoint).observe(seconds)
        if status >= 400:
            self._errors.labels(endpoint, str(status)).inc()

    def bundle(self, name: str, version: str, outcome: str) -> None:
        """Count a bundle that was ``loaded``, ``swapped`` or ``refused``."""
        self._loads.labels(name, version, outcome).inc()

    def of_model(self, name: str, version: str) -> ModelMetrics:
        """Return the counters of one version of a model."""
        return ModelMetrics(
            self._batch_images.labels(name, version),
            self._batch_seconds.labels(name, version),
            {one: self._images.labels(name, version, one) for one in ("computed", "cached", "failed")},
        )

    def page(self) -> bytes:
        """Return everything in Prometheus' text form."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The counters of one version of a model."""

    def __init__(self, batch_images: Histogram, batch_seconds: Histogram, images: dict[str, Counter]) -> None:
        self._batch_images, self._batch_seconds, self._images = batch_images, batch_seconds, images

    def batch_ran(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_images.observe(size)
        self._batch_seconds.observe(seconds)

    def count(self, outcome: str) -> None:
        """Count an input that was ``computed``, ``cached`` or ``failed``."""
        self._images[outcome].inc()
