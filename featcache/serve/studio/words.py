"""`Words`: the texts of a data set, for lists of them and for search; each is read once and kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featcache.errors import SampleError
from featcache.extract.inputs.interface import Input

MOST = 4000  # characters of a text that are kept: a list shows no more, and search looks no further


class Words:
    """The first 4000 characters of each of `count` texts, whose bytes `read` gives by number. Thread-safe."""

    def __init__(self, kind: Input, read: Callable[[int], bytes], count: int) -> None:
        self._kind, self._read = kind, read
        self._kept: list[str | None] = [None] * count

    def of(self, sample: int) -> str:
        """Return the text of `sample`; raises `SampleError` where it is gone or another one by now."""
        text = self._kept[sample]
        if text is None:
            text = self._kept[sample] = self.whole(sample)[:MOST]
        return text

    def whole(self, sample: int) -> str:
        """Return all of the text of `sample`, read now; raises as `of`."""
        _, data = self._kind.show(self._read(sample), side=MOST)
        return data.decode()

    def holding(self, wanted: str) -> npt.NDArray[np.bool_]:
        """Return (n,) which texts hold `wanted`, in any case; those that cannot be read do not."""
        folded = wanted.casefold()
        return np.fromiter((self._holds(sample, folded) for sample in range(len(self._kept))), bool, len(self._kept))

    def _holds(self, sample: int, folded: str) -> bool:
        try:
            return folded in self.of(sample).casefold()
        except SampleError:
            return False
