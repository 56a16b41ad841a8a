"""`FeatureCache`: the feature rows of exactly one `Recipe`, and the samples that refer to them, in one directory.

    CACHE/manifest.json          format version, Recipe, its fingerprint, the kind of store, what was asked for
    CACHE/manifest-copy.json     the same bytes, should one of the two be damaged
    CACHE/requests.json          requests already resolved to this Recipe (lets a no-op rebuild import nothing heavy)
    CACHE/store/                 the rows (`featcache.store`), keyed by the sha256 of the input's bytes
    CACHE/samples/NAME.safetensors   the samples of data set NAME (`featcache.datasets.samples`)

On object storage all but the manifest lies below ``CACHE/content-ID/``, and the samples are in parts
(`featcache.cache.object_sample_lists`). Nothing here knows what an input is: an extractor of another kind brings its
own Recipe and the same columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.cache.manifest import UNCHECKED_VERSION, check_manifest, clear_contents, content_of, read_manifest
from featcache.cache.object_sample_lists import ObjectSampleLists
from featcache.cache.sample_lists import LocalSampleLists
from featcache.datasets.listing import printable
from featcache.datasets.place import root_of
from featcache.datasets.samples import Samples
from featcache.datasets.splits import SPLITS, split_code
from featcache.errors import CorruptError, InputError
from featcache.recipe import Recipe
from featcache.store import Column, FeatureStore, StoreReader, open_store
from featcache.system.files import write_atomically
from featcache.system.json import DocumentKind, parse_json, read_document, with_checksum
from featcache.system.objects import ObjectPath, place_of

_DIGEST_BLOCK_ROWS = 4096
_REQUESTS = DocumentKind(
    "CACHE",
    make="the next build writes it",
    renew="the next build writes it anew",
    keys=("requests",),
    checksum=True,
)
_REMEMBERED_REQUESTS = 8

CachePlace = str | os.PathLike[str] | ObjectPath  # of a cache: a directory, or a URL


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of a cache that some samples refer to, in sample order.

    `indices` (n,) int64: positions in the data set's samples. `rows` (n,) int64: positions in the store.
    `labels`: (n,) int64 class indices, -1 for none; for multi-label and regression sets (n, n_targets) float32.
    """

    indices: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class CacheVerification:
    """What a check of every stored byte found: `ok`, the number of intact `rows`, and one line per problem."""

    ok: bool
    rows: int
    problems: tuple[str, ...]


def column_name(output: str, view: int) -> str:
    """Return the store's column of `output` in `view`: the bare name for the plain view 0."""
    return output if view == 0 else f"{output}@{view}"


def recipe_columns(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Column, ...]:
    """Return the store's columns for a Recipe, given the shape of one row of each output: all outputs, view by view."""
    return tuple(
        Column(column_name(output, view), shapes[output], recipe.dtype)
        for view in range(recipe.views)
        for output in recipe.outputs
    )


class FeatureCache:
    """An open cache. Close it, or use it as a context manager; several processes may read it while one builds.

    `open_cache` makes it of a directory or a URL. `path`: that. `recipe`: what determines a row besides the image's
    bytes. `request`: what the build was asked for. `store`: the rows. `store_kind`: ``lmdb`` or ``zarr``.

    Examples
    --------
    >>> from featcache.cache import open_cache
    >>> with open_cache("cache") as cache:                  # as: featcache build photos --cache cache
    ...     features, labels = cache.numpy(split="val")     # copies: (n, d) float32 and (n,) int64
    ...     with cache.reader() as reader:                  # views of what is on disk, valid inside
    ...         for start, block in reader.blocks(cache.columns[0].name):
    ...             total = float(block.sum())
    >>> isinstance(cache, FeatureCache)
    True
    """

    def __init__(self, path: Path | ObjectPath, *, manifest: Mapping[str, Any], store: FeatureStore) -> None:
        self.path = path
        self._content = content = content_of(path, manifest)
        self.recipe = Recipe.from_json(manifest["recipe"])
        self.request: Mapping[str, Any] = manifest["request"]
        self.store_kind: str = manifest["store"]
        self.format_version: int = manifest["version"]
        self.store = store
        self._lists = (
            ObjectSampleLists(content) if isinstance(content, ObjectPath) else LocalSampleLists(content / "samples")
        )
        self._samples: dict[str, tuple[int, Samples]] = {}
        self._roots: dict[str, str] = {}  # where images are looked for instead of where they were, by data set

    # --- what is in it ---

    @property
    def fingerprint(self) -> str:
        """The Recipe's fingerprint, 64 hexadecimal digits."""
        return self.recipe.fingerprint

    @property
    def columns(self) -> tuple[Column, ...]:
        """The stored columns: every output, then the same for each further view."""
        return self.store.columns

    @property
    def num_features(self) -> int:
        """Numbers in one row of the first output."""
        return math.prod(self.columns[0].shape)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets, sorted."""
        return tuple(self._lists.names())

    def samples(self, dataset: str | None = None) -> Samples:
        """Return the samples of `dataset`, which may be left out where the cache holds only one.

        Raises `InputError` where there is no such data set, `FormatError` and `CorruptError` where its list is damaged.
        """
        name = self._dataset(dataset)
        if self._samples.get(name, (None,))[0] != self._lists.stamp(name):
            self._samples[name] = self._lists.load(name)
        found, root = self._samples[name][1], self._roots.get(name)
        return found if root is None else found.at(root)

    @contextlib.contextmanager
    def images_at(self, images: str | os.PathLike[str] | None, *, dataset: str | None = None) -> Iterator[None]:
        """Look for the images of `dataset` below the folder or URL (or beside the CSV) `images` within the block.

        None: where the build found them. Nothing is stored. Raises `MissingError` where none of them lies there.
        """
        if images is None:
            yield
            return
        name = self._dataset(dataset)
        self._roots[name] = root_of(images)
        try:
            self.samples(name).require_images()
            yield
        finally:
            del self._roots[name]

    def _dataset(self, dataset: str | None) -> str:
        names = self.datasets
        if dataset is None and len(names) == 1:
            return names[0]
        if dataset in names:
            return str(dataset)
        if not names:
            raise InputError(f"the cache {str(self.path)!r} must hold a data set, it has none yet: build it first")
        raise InputError(f"--dataset must name one of {list(names)!r} in the cache {str(self.path)!r}, got {dataset!r}")

    # --- reading ---

    def reader(self) -> StoreReader:
        """Return a snapshot of the committed rows, to be used in a ``with`` block; its views are valid inside."""
        return self.store.reader()

    def select(self, *, split: str | None = None, dataset: str | None = None, labelled: bool = True) -> Selection:
        """Return which rows the samples of a split (None for all) refer to; samples without a row are left out.

        `dataset` may be left out where the cache holds only one. `labelled`: leave out samples without a label. Raises
        `InputError` where there is no such split or data set.
        """
        samples = self.samples(dataset)
        selected = samples.decoded
        if split is not None:
            selected &= samples.splits == split_code(split)
        if labelled:
            selected &= samples.labels >= 0
        indices = np.flatnonzero(selected)
        with self.reader() as reader:
            rows = reader.find(samples.digests[indices])
        present = rows >= 0
        indices, rows = indices[present], rows[present]
        labels = samples.labels[indices] if samples.targets is None else samples.targets[indices]
        return Selection(indices, rows, labels)

    def numpy(
        self,
        *,
        split: str | None = None,
        dataset: str | None = None,
        output: str | Sequence[str] | None = None,
        view: int | Sequence[int] = 0,
        labelled: bool = True,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
        """Return copies of the features and labels of some samples.

        Parameters
        ----------
        split
            ``train``, ``val`` or ``test``; None: all samples.
        dataset
            Which data set, where the cache holds several.
        output
            One stored output, or several, each flattened and laid side by side; None: the first.
        view
            One view, or several: the samples are then repeated view after view.
        labelled
            Leave out samples without a label.

        Returns
        -------
        features
            (n, d) float32, n = n_samples · n_views.
        labels
            (n,) int64, or (n, n_targets) float32 for several labels and for regression.

        Raises
        ------
        InputError
            Where the cache has no such split, data set, output or view.
        """
        selection = self.select(split=split, dataset=dataset, labelled=labelled)
        views = [view] if isinstance(view, int) else list(view)
        features = self.gather(selection.rows, output=output, views=views)
        labels = np.concatenate([selection.labels] * len(views))
        return features, labels

    def gather(
        self,
        rows: npt.NDArray[np.int64],
        *,
        output: str | Sequence[str] | None = None,
        views: Sequence[int] = (0,),
        reader: StoreReader | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the features (len(views) · n, d) float32 of store rows (n,), outputs side by side, view after view.

        `reader`: an open one of this cache, for who gathers often; None: what is committed now.
        """
        outputs = self.outputs(output)
        self.check_views(views)
        by_name = {column.name: column for column in self.columns}
        widths = [math.prod(by_name[name].shape) for name in outputs]
        features = np.empty((len(views) * len(rows), sum(widths)), dtype=np.float32)
        with self.reader() if reader is None else contextlib.nullcontext(reader) as snapshot:
            for position, view in enumerate(views):
                block = features[position * len(rows) : (position + 1) * len(rows)]
                left = 0
                for name, width in zip(outputs, widths, strict=True):
                    values = snapshot.gather(column_name(name, view), rows)
                    block[:, left : left + width] = values.reshape(len(rows), width)
                    left += width
        return features

    def check_views(self, views: Sequence[int]) -> Sequence[int]:
        """Return `views`; `InputError` where one is not stored."""
        for view in views:
            if not 0 <= view < self.recipe.views:
                raise InputError(f"view must be 0 to {self.recipe.views - 1} in {str(self.path)!r}, got {view!r}")
        return views

    def outputs(self, output: str | Sequence[str] | None = None) -> list[str]:
        """Return the names of the outputs meant: one, several, or None for the first; `InputError` for unknown ones."""
        outputs = [output or self.recipe.outputs[0]] if output is None or isinstance(output, str) else list(output)
        for name in outputs:
            if name not in self.recipe.outputs:
                raise InputError(
                    f"output must be one of {list(self.recipe.outputs)!r} stored in {str(self.path)!r}, got {name!r}: "
                    "build another cache with --outputs"
                )
        return outputs

    def content_digest(self) -> str:
        """Return the sha256 over (digest, row bytes) of every row, sorted by digest: equal content, equal digest.

        A row's bytes are its columns' little-endian values, one column after another.
        """
        state = hashlib.sha256()
        with self.reader() as reader:
            keys = np.ascontiguousarray(reader.keys())
            order = np.argsort(keys.view("S32").ravel(), kind="stable")
            for start in range(0, len(order), _DIGEST_BLOCK_ROWS):
                rows = order[start : start + _DIGEST_BLOCK_ROWS]
                parts = [keys[rows]]
                for column in self.columns:
                    values = np.ascontiguousarray(reader.gather(column.name, rows))
                    parts.append(values.reshape(len(rows), -1).view(np.uint8))
                state.update(np.concatenate(parts, axis=1).tobytes())
        return state.hexdigest()

    # --- checking ---

    def info(self) -> dict[str, Any]:
        """Return what `featcache info` prints: Recipe, data sets, counts, bytes, digest, conflicts, failures."""
        datasets, conflicts, failures = [], [], []
        total = 0
        for name in self.datasets:
            samples = self.samples(name)
            total += len(samples)
            datasets.append(self._describe(samples))
            for kind, groups in (("labels", samples.label_conflicts()), ("splits", samples.split_leaks())):
                conflicts += [{"dataset": name, "kind": kind, "paths": [printable(p) for p in g]} for g in groups]
            failures += [
                {"dataset": name, "path": printable(path), "reason": reason}
                for path, reason in [
                    *((samples.paths[index], reason) for index, reason in sorted(samples.failures.items())),
                    *samples.listing.failures,
                ]
            ]
        with self.reader() as reader:
            rows = len(reader)
        return {
            "recipe": self.recipe.to_json(),
            "fingerprint": self.fingerprint,
            "random_weights": self.recipe.random_weights,
            "store": self.store_kind,
            "columns": [{"name": c.name, "shape": list(c.shape), "dtype": c.dtype} for c in self.columns],
            "datasets": datasets,
            "rows": rows,
            "samples": total,
            "bytes": self.store.nbytes(),
            "num_features": self.num_features,
            "content_digest": self.content_digest(),
            "conflicts": conflicts,
            "failures": failures,
        }

    def _describe(self, samples: Samples) -> dict[str, Any]:
        decoded = samples.decoded
        return {
            "name": samples.dataset,
            "root": printable(samples.root),
            "task": samples.task,
            "classes": list(samples.classes),
            "samples": len(samples),
            "unlabelled": int((samples.labels < 0).sum()),
            "ignored": samples.listing.ignored,
            "failed": len(samples.failures) + len(samples.listing.failures),
            "splits": {name: int((decoded & (samples.splits == code)).sum()) for code, name in enumerate(SPLITS)},
        }

    def verify(self, *, repair: bool = False) -> CacheVerification:
        """Check every stored byte; with `repair`, drop exactly the damaged rows (the next build restores them).

        A damaged list of samples is dropped too: building its data set again restores it, and reuses every row. On
        object storage a repair also clears what killed creations and writers left, once it is a day old.
        """
        report = self.store.verify(repair=repair)
        problems = list(report.problems)
        problems += check_manifest(self.path, repair=repair)
        try:
            self._read_requests()
        except CorruptError as error:
            problems.append(str(error))
            if repair:
                (self._content / "requests.json").unlink()
        with self.reader() as reader:
            rows = len(reader)
            for _, samples, problem in self._lists.check(repair=repair):
                if problem is not None:
                    problems.append(problem)
                if samples is None:
                    continue
                missing = int((reader.find(samples.digests[samples.decoded]) < 0).sum())
                if missing:
                    problems.append(f"data set {samples.dataset!r}: {missing} samples have no row: build it again")
        if repair and isinstance(self.path, ObjectPath):
            clear_contents(self.path)
        return CacheVerification(not problems, rows, tuple(problems))

    # --- writing (used by builds) ---

    def replace_samples(self, samples: Samples, *, before: Samples | None = None) -> None:
        """Make `samples` the list of its data set, durable on return.

        `before`: the list that it was made from, as `samples` returned it. Raises `LockedError` where that is on object
        storage and another build has replaced it meanwhile.
        """
        stamp, known = self._samples.get(samples.dataset, (None, None))
        if before is not None and before is not known:
            stamp = None
        self._lists.replace(samples, before=None if before is None else stamp)

    def known_requests(self) -> list[Any]:
        """Return the requests (with the versions they were resolved under) known to lead to this Recipe."""
        try:
            return self._read_requests()
        except CorruptError:
            return []  # a memo only: without it the Recipe is resolved again

    def _read_requests(self) -> list[Any]:
        path = self._content / "requests.json"
        if not path.exists():
            return []
        if self.format_version == UNCHECKED_VERSION:  # which wrote a bare list
            with contextlib.suppress(ValueError):  # `read_document` says what is wrong with it
                requests = parse_json(path.read_bytes())
                if isinstance(requests, list):
                    return requests
        return list(read_document(path, _REQUESTS)["requests"])

    def remember_request(self, request: Mapping[str, Any]) -> None:
        """Note that `request` leads to this Recipe; the latest eight are kept."""
        others = [known for known in self.known_requests() if known != request]
        values = with_checksum({"requests": [*others, request][-_REMEMBERED_REQUESTS:]})
        write_atomically(self._content / "requests.json", json.dumps(values, indent=1).encode())

    def referenced(self) -> npt.NDArray[np.uint8]:
        """Return the digests (n, 32) of all samples of all data sets."""
        parts = [self.samples(name).digests for name in self.datasets]
        return np.concatenate(parts) if parts else np.empty((0, 32), dtype=np.uint8)

    def close(self) -> None:
        """Release the store."""
        self.store.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FeatureCache({str(self.path)!r}, {self.recipe.model!r}, {self.fingerprint[:12]})"


def open_cache(path: CachePlace) -> FeatureCache:
    """Return the cache in a directory or on object storage, open.

    Parameters
    ----------
    path
        The directory or the URL (``s3://BUCKET/KEY``) that a build made.

    Returns
    -------
    FeatureCache
        Close it, or use it as a context manager.

    Raises
    ------
    MissingError
        Where there is nothing.
    FormatError
        Where it is no cache, or one of a newer format.
    CorruptError
        Where its manifest was changed.

    Examples
    --------
    >>> with open_cache("cache") as cache:                  # as: featcache build photos --cache cache
    ...     features, labels = cache.numpy(split="train")
    >>> features.shape == (len(labels), cache.num_features)
    True
    """
    place = place_of(path)
    manifest = read_manifest(place)
    return FeatureCache(place, manifest=manifest, store=open_store(content_of(place, manifest) / "store"))


@contextlib.contextmanager
def borrow_cache(
    cache: FeatureCache | CachePlace,
    *,
    images: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
) -> Iterator[FeatureCache]:
    """Give `cache` itself, and leave it open; or the cache at that path, closed at the end.

    `images`: where the images of `dataset` lie by now, as of `FeatureCache.images_at`. Raises as that and `open_cache`.
    """
    with contextlib.ExitStack() as stack:
        opened = cache if isinstance(cache, FeatureCache) else stack.enter_context(open_cache(cache))
        stack.enter_context(opened.images_at(images, dataset=dataset))
        yield opened
