"""`Collection`: one data set of a cache in memory: features, names, splits, and labels as they stand."""

from __future__ import annotations

import csv
import dataclasses
import io
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featcache.cache import open_cache
from featcache.cache.table import sample_table
from featcache.errors import InputError, SampleError
from featcache.extract.inputs.registry import find_input
from featcache.serve.refusals import RefusedError
from featcache.serve.studio.database import Database
from featcache.serve.studio.labels import Change, History, LabelStore
from featcache.serve.studio.likeness import Likeness
from featcache.serve.studio.words import Words
from featcache.system.files import safe_name
from featcache.system.machine import memory_bytes_of_machine

NO_LABEL = -1
SPLITS = ("train", "val", "test")
_LONGEST_CLASS = 100


class Collection:
    """The data set `dataset` of the cache at `path`; `name` is that path in the workspace.

    `features` (n, d) float32, `digests` (n, 32) uint8, `paths` and `splits` are of the images, or
    texts, that have a row; a sample is called by its position among them, as long as `generation` stays. `groups` (n,):
    a number that equal ones share. `failures`: (path, reason) of the others. `kind`: what they are.

    Raises
    ------
    InputError
        For a data set of another task than classification, one of a kind that nobody can look at, and one that does not
        fit into half of the memory.
    """

    def __init__(self, database: Database, path: Path, name: str, dataset: str) -> None:
        self.path, self.name, self.dataset = path, name, dataset
        self.lock = threading.RLock()
        self.store = LabelStore(database, name, dataset)
        self._load()

    @property
    def id(self) -> int:
        """Its number in the database."""
        return self.store.id

    def _load(self) -> None:
        with open_cache(self.path) as cache:
            self.generation = _stamp(self.path, self.dataset)
            samples = cache.samples(self.dataset)
            if samples.task != "classification":
                raise InputError(
                    f"the studio gives one class each, the data set {self.dataset!r} is for {samples.task}"
                )
            self.kind = find_input(cache.recipe.input)
            if self.kind.shown is None:
                raise InputError(
                    f"the studio shows pictures and texts, the cache {self.name!r} holds the input kind "
                    f"{self.kind.name!r}, which says no way to be seen: train with featcache train"
                )
            selection = cache.select(dataset=self.dataset, labelled=False)
            needed = len(selection.rows) * cache.num_features * 4
            memory = memory_bytes_of_machine()
            if memory is not None and needed > memory // 2:
                raise InputError(
                    f"the features must fit into half of the memory, {len(selection.rows)} x {cache.num_features} "
                    f"numbers take {needed / 1e9:.1f} GB: label a part of them"
                )
            self.samples, self._indices = samples, selection.indices
            self.features = cache.gather(selection.rows)
            self._likeness: Likeness | None = None
            self.fingerprint = cache.fingerprint
            self.backbone = cache.recipe.model
            table = list(sample_table(cache, dataset=self.dataset))
        self.failures = [(cells[0], cells[6]) for cells in table if cells[6]]
        kept = [table[index] for index in selection.indices.tolist()]
        self.paths = [cells[0] for cells in kept]
        self.splits = np.array([SPLITS.index(cells[2]) for cells in kept], dtype=np.int8)
        self.digests = samples.digests[selection.indices]
        self._words = Words(self.kind, self.source, len(kept)) if self.kind.shown == "text" else None
        self._keys = [digest.tobytes() for digest in self.digests]
        self._equal: dict[bytes, list[int]] = {}
        for index, key in enumerate(self._keys):
            self._equal.setdefault(key, []).append(index)
        numbers = {key: number for number, key in enumerate(self._equal)}
        self.groups = np.array([numbers[key] for key in self._keys], dtype=np.int64)
        # what stands in val or test as well is not trained on
        self.trainable = np.array(
            [bool((self.splits[self._equal[key]] == 0).all()) for key in self._keys], dtype=bool
        )  # fmt: skip
        self.classes = list(samples.classes)
        self.given = np.asarray(selection.labels, dtype=np.int32)
        self.labels = self.given.copy()
        for added in self.store.classes():
            self._class_number(added)
        own = self.store.labels()
        self._show([(digest, label) for digest, label in own.items() if digest in self._equal])

    def reload_if_built(self) -> bool:
        """Read the cache again where a build has changed it; return whether it has."""
        with self.lock:
            if _stamp(self.path, self.dataset) == self.generation:
                return False
            self._load()
            return True

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def likeness(self) -> Likeness:
        """How like the images are to each other, made at its first use."""
        with self.lock:
            if self._likeness is None:
                self._likeness = Likeness(self.features)
            return self._likeness

    def source(self, sample: int) -> bytes:
        """Return the bytes of `sample`; `SampleError` where it is gone or another one by now."""
        return self.samples.sources([int(self._indices[sample])])[0]()

    def text(self, sample: int) -> tuple[str | None, str | None]:
        """Return what `sample` says, None where it is no text, and why that cannot be read, None where it can."""
        if self._words is None:
            return None, None
        try:
            return self._words.of(sample), None
        except SampleError as error:
            return None, str(error)

    def holding(self, wanted: str) -> npt.NDArray[np.bool_]:
        """Return (n,) which texts, or names of images, hold `wanted`, in any case."""
        if self._words is not None:
            return self._words.holding(wanted)
        folded = wanted.casefold()
        return np.fromiter((folded in path.casefold() for path in self.paths), bool, len(self))

    def digest(self, sample: int) -> str:
        """Return the digest of the image's bytes as 64 hexadecimal digits."""
        return str(self._keys[sample].hex())

    def class_name(self, number: int) -> str | None:
        """Return the class of that number, None for none."""
        return self.classes[number] if number >= 0 else None

    def check_sample(self, sample: int) -> int:
        """Return `sample`; `RefusedError` (404) where there is none of that number."""
        if not 0 <= sample < len(self):
            raise RefusedError(404, f"a sample's number must be 0 to {len(self) - 1}, got {sample}")
        return sample

    # --- labels ---

    def history(self) -> History:
        """Return where the labels stand."""
        return self.store.history()

    def add_class(self, name: str) -> int:
        """Return the number of the class `name`, added where it is new.

        Raises `InputError` for a name that is empty, long, or has characters that are not shown.
        """
        with self.lock:
            if name not in self.classes:
                if not name.strip() or name != name.strip() or len(name) > _LONGEST_CLASS or not name.isprintable():
                    raise InputError(
                        f"a class must have a name of 1 to {_LONGEST_CLASS} characters that can be seen, without "
                        f"spaces around, got {name[:100]!r}"
                    )
                self.store.add_class(name)
            return self._class_number(name)

    def set_labels(self, samples: Sequence[int], labels: Sequence[str | None], *, revision: int) -> tuple[History, int]:
        """Give each of `samples` its label, None for none; return where the labels stand, and how many changed.

        Raises `RefusedError`: 404 for a sample or a class that is not there, 409 where one has changed since
        `revision`.
        """
        with self.lock:
            for name in {label for label in labels if label is not None}:
                if name not in self.classes:
                    raise RefusedError(404, f"a label must be one of the classes, got {name[:100]!r}: add it first")
            wanted: dict[bytes, str | None] = {}
            for sample, label in zip(samples, labels, strict=True):
                wanted[self._keys[self.check_sample(sample)]] = label
            changes: list[Change] = []
            for key, label in wanted.items():
                before = {self.class_name(int(self.labels[index])) for index in self._equal[key]}
                if before != {label}:
                    changes.append((key, self.class_name(int(self.labels[self._equal[key][0]])), label))
            if not changes:
                return self.history(), 0
            history = self.store.change(changes, revision=revision)
            self._show([(key, label) for key, _, label in changes])
            return history, len(changes)

    def undo(self, *, revision: int) -> tuple[History, int]:
        """Take the last change back; return where labels stand, and how many changed. Raises as `LabelStore.undo`."""
        with self.lock:
            history, labels = self.store.undo(revision=revision)
            return history, self._show(labels)

    def redo(self, *, revision: int) -> tuple[History, int]:
        """Do the change again that was undone last; returns and raises as `undo`."""
        with self.lock:
            history, labels = self.store.redo(revision=revision)
            return history, self._show(labels)

    def _show(self, labels: Sequence[tuple[bytes, str | None]]) -> int:
        for key, label in labels:
            number = NO_LABEL if label is None else self._class_number(label)
            for index in self._equal.get(key, ()):
                self.labels[index] = number
        return len(labels)

    def _class_number(self, name: str) -> int:
        if name not in self.classes:
            self.classes.append(name)
        return self.classes.index(name)

    def save_labelled(self, name: str) -> None:
        """Write the labels as they stand into the cache, as its data set `name`, which the commands can train on.

        Raises `InputError` where no image has a label.
        """
        with self.lock, open_cache(self.path) as cache:
            used = np.unique(self.labels[self.labels >= 0])
            if not len(used):
                raise InputError("there must be labels, no image has one yet: label some first")
            labels = np.full(len(self.samples), NO_LABEL, dtype=np.int32)
            labels[self._indices] = np.where(self.labels >= 0, np.searchsorted(used, self.labels), NO_LABEL)
            listing = dataclasses.replace(
                self.samples.listing, classes=tuple(self.classes[number] for number in used), labels=labels
            )
            cache.replace_samples(dataclasses.replace(self.samples, dataset=name, listing=listing))
            self.store.note_made(name)

    def table(self) -> str:
        """Return the labels as CSV, again a data set: ``path,label,split``, or ``text,label,split`` of texts.

        Raises `SampleError` for a text that is gone.
        """
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("path" if self._words is None else "text", "label", "split"))
        with self.lock:
            for sample, (path, label, split) in enumerate(
                zip(self.paths, self.labels.tolist(), self.splits.tolist(), strict=True)
            ):
                named = path if self._words is None else self._words.whole(sample)
                writer.writerow((named, self.class_name(label) or "", SPLITS[split]))
        return table.getvalue()

    def counts(self) -> dict[str, list[int]]:
        """Return the number of labelled images of each class, and of unlabelled ones last, in each split."""
        with self.lock:
            size = len(self.classes) + 1
            return {
                split: np.bincount(self.labels[self.splits == code] % size, minlength=size).tolist()
                for code, split in enumerate(SPLITS)
            }


def _stamp(cache: Path, dataset: str) -> str:
    """Return what changes when a build has written the data set."""
    status = (cache / "samples" / f"{safe_name(dataset)}.safetensors").stat()
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}"
