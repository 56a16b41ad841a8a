"""Where a cache keeps the samples of its data sets: one interface for a directory and for object storage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from featcache.datasets.samples import Samples, load_samples, save_samples
from featcache.errors import CorruptError, FormatError
from featcache.system.files import safe_name


class SampleLists(ABC):
    """The lists of samples of a cache, one for each data set, each replaced whole."""

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the data sets, sorted."""

    @abstractmethod
    def stamp(self, dataset: str) -> int:
        """Return a number that changes when the list of `dataset` is replaced."""

    @abstractmethod
    def load(self, dataset: str) -> tuple[int, Samples]:
        """Return the stamp and the list of `dataset`; `FormatError` and `CorruptError` where it is damaged."""

    @abstractmethod
    def replace(self, samples: Samples, *, before: int | None) -> None:
        """Make `samples` the list of its data set, durable on return.

        `before`: the stamp of the list that it was made from, None where there was none. Raises `LockedError` where
        another process has replaced that one meanwhile, and the lists know it.
        """

    @abstractmethod
    def check(self, *, repair: bool = False) -> Iterator[tuple[str, Samples | None, str | None]]:
        """Yield (place, list, problem) of each data set; to `repair`, remove the lists that are damaged."""


class LocalSampleLists(SampleLists):
    """One safetensors file for each data set, in the directory `folder`; the store's lock keeps other builds away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        return sorted(unquote(file.stem, errors="surrogateescape") for file in self._files())

    def stamp(self, dataset: str) -> int:
        return self._file(dataset).stat().st_mtime_ns

    def load(self, dataset: str) -> tuple[int, Samples]:
        return self.stamp(dataset), load_samples(self._file(dataset))

    def replace(self, samples: Samples, *, before: int | None) -> None:
        self._folder.mkdir(exist_ok=True)
        save_samples(samples, self._file(samples.dataset))

    def check(self, *, repair: bool = False) -> Iterator[tuple[str, Samples | None, str | None]]:
        for file in self._files():
            try:
                samples = load_samples(file)
            except CorruptError as error:
                yield str(file), None, str(error)
                if repair:
                    file.unlink()
                continue
            except FormatError as error:
                yield str(file), None, str(error)
                continue
            problem = None
            if safe_name(samples.dataset) != file.stem:
                problem = f"{str(file)!r} must hold that data set, it holds {samples.dataset!r}"
            yield str(file), samples, problem

    def _files(self) -> list[Path]:
        """Return the files of the data sets; a name that begins with a dot is a half-written one."""
        return sorted(file for file in self._folder.glob("*.safetensors") if not file.name.startswith("."))

    def _file(self, dataset: str) -> Path:
        return self._folder / f"{safe_name(dataset)}.safetensors"
