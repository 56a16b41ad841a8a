"""Logits of many images, batch by batch: computed in this process, or in a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.errors import InputError
from featcache.images.read import ImageFile
from featcache.runtime.classifier import Classifier, open_classifier
from featcache.system.cluster import ClusterSettings, cluster
from featcache.system.shares import Share, Stage, Work, path_shares, paths_of, work_through
from featcache.system.sources.batches import BATCH_SIZE, Source

_BATCHES = 8  # of a share
_LEAST_SHARES = 4  # for each actor, so that none waits long for the last

IndexedLogits = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def batches_of_logits(
    classifier: Classifier, files: Sequence[Source], *, failures: dict[int, str]
) -> Iterator[IndexedLogits]:
    """Yield (indices, logits) of the inputs of `files` that decode; index → reason of the others goes to `failures`."""
    for batch in classifier.input.batches(files, failures=failures):
        yield batch.indices, classifier.run(batch.values)


def batches_of_logits_from_cluster(
    path: str | os.PathLike[str],
    files: Sequence[Source],
    *,
    format: str | None,
    settings: ClusterSettings,
    failures: dict[int, str],
) -> Iterator[IndexedLogits]:
    """Yield as `batches_of_logits` what actors of a cluster compute, as it is done: with the BUNDLE or MODEL at `path`.

    That and the images must be where the cluster's machines can read them. Raises as `open_classifier`, as
    `featcache.system.cluster.cluster` and as `work_through`, and `InputError` for inputs that lie in no file.
    """
    paths = [file for file in files if isinstance(file, ImageFile)]
    if len(paths) < len(files):
        raise InputError("with --ray inputs must lie in files that its machines can read, got texts themselves")
    with cluster(settings.address) as ray:
        actors, processors = settings.actors_and_processors(ray)
        # whole batches, so that each image is computed beside the same others as in one process
        fair = -(-len(files) // (actors * _LEAST_SHARES * BATCH_SIZE))
        size = max(1, min(_BATCHES, fair)) * BATCH_SIZE
        start = _StartClassifier(os.path.abspath(path), format, processors)
        stage = Stage(start, actors, cpus=processors, gpus=settings.gpus_per_actor)
        for share in work_through(_file_shares(paths, size), [stage]):
            first = share.values["start"]
            failures.update({first + int(index): reason for index, reason in share.values["failures"].items()})
            yield first + share.arrays["indices"], share.arrays["logits"]


def _file_shares(files: Sequence[ImageFile], size: int) -> Iterator[Share]:
    """Yield shares of paths, with the digests that the files must have where these are known."""
    for share in path_shares([os.fspath(file.path) for file in files], size):
        chosen = files[share.values["start"] : share.values["start"] + size]
        yield Share({**share.values, "digests": [file.digest and file.digest.hex() for file in chosen]}, share.arrays)


@dataclass(frozen=True, slots=True)
class _StartClassifier:
    """Opens a BUNDLE or MODEL in an actor."""

    path: str
    format: str | None
    threads: int

    def __call__(self) -> Work:
        classifier = open_classifier(self.path, format=self.format, threads=self.threads)

        def work(share: Share) -> Share:
            digests = [None if digest is None else bytes.fromhex(digest) for digest in share.values["digests"]]
            files = [ImageFile(path, digest) for path, digest in zip(paths_of(share), digests, strict=True)]
            failures: dict[int, str] = {}
            batches = list(batches_of_logits(classifier, files, failures=failures))
            indices = [indices for indices, _ in batches] or [np.zeros(0, dtype=np.int64)]
            logits = [rows for _, rows in batches] or [np.zeros((0, len(classifier.classes)), dtype=np.float32)]
            return Share(
                {"start": share.values["start"], "failures": failures},
                {"indices": np.concatenate(indices), "logits": np.concatenate(logits)},
            )

        return work
