"""Work that is done in shares by the actors of a Ray cluster: Ray Data streams the shares, places and repeats the work.

A `Share` goes in, a `Share` comes out, in the order in which they are done. What is killed is computed again elsewhere;
an error that featcache raises on purpose comes back as what it is, any other as Ray's account of it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import featcache.errors as errors_module
from featcache.errors import ClusterError, DependencyError, FeatcacheError
from featcache.system.json import parse_json

if TYPE_CHECKING:
    import pyarrow

_ALIGNMENT = 64
_ERROR = "featcache error"


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """Some JSON values and some arrays, which travel through the object store as they are; treat both as read-only."""

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def to_table(self) -> pyarrow.Table:
        """Return a table of one row that holds all of it."""
        import pyarrow

        layout: list[Any] = []
        parts: list[Any] = []
        end = 0
        for name, array in self.arrays.items():
            gap = -end % _ALIGNMENT
            parts += [bytes(gap), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
            layout.append([name, array.dtype.str, list(array.shape), end + gap])
            end += gap + array.nbytes
        offsets = pyarrow.py_buffer(np.array([0, end], dtype=np.int64))
        cell = pyarrow.LargeBinaryArray.from_buffers(
            pyarrow.large_binary(), 1, [None, offsets, pyarrow.py_buffer(b"".join(parts))]
        )
        return pyarrow.table({"note": [json.dumps({"values": self.values, "arrays": layout})], "data": cell})

    @classmethod
    def of_table(cls, table: pyarrow.Table) -> Iterator[Share]:
        """Yield the share of each row of `table`; its arrays are views of the table's memory."""
        notes, cells = table.column("note"), table.column("data")
        for row in range(table.num_rows):
            note, data = parse_json(notes[row].as_py()), np.frombuffer(cells[row].as_buffer(), dtype=np.uint8)
            arrays = {}
            for name, dtype, shape, start in note["arrays"]:
                size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
                arrays[name] = data[start : start + size].view(dtype).reshape(shape)
            yield cls(note["values"], arrays)


def path_shares(paths: Sequence[str | bytes], size: int) -> Iterator[Share]:
    """Yield shares of `size` paths each, with the index of the first of them as the value ``start``."""
    for start in range(0, len(paths), size):
        chosen = [os.fsencode(paths[index]) for index in range(start, min(start + size, len(paths)))]
        yield Share({"start": start}, {"paths": np.frombuffer(b"\0".join(chosen), dtype=np.uint8)})


def paths_of(share: Share) -> list[str]:
    """Return the paths of a share that `path_shares` made."""
    return [os.fsdecode(path) for path in share.arrays["paths"].tobytes().split(b"\0")]


Work = Callable[[Share], Share]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the work on each share.

    `start`: pickled to each actor, where it is called once and returns the work itself. `actors`: at most so many, as
    the work needs and the cluster has room; None: tasks instead, which start anew for each share. `cpus`, `gpus`: of
    each. `calls`: how many shares an actor works on at once.
    """

    start: Callable[[], Work]
    actors: int | None
    cpus: float = 1
    gpus: float = 0
    calls: int = 1


def work_through(shares: Iterable[Share], stages: Sequence[Stage]) -> Iterator[Share]:
    """Yield what the `stages`, one after another, make of each of `shares`, as they are done.

    Raises `ClusterError` where the cluster loses what it cannot compute again, or gets on with nothing for half an
    hour, and what the work raises on purpose.
    """
    ray = _ray_data()
    tables = [ray.put(share.to_table()) for share in shares]
    if not tables:
        return
    dataset = ray.data.from_arrow_refs(tables)
    dataset.context.enable_progress_bars = False
    for stage in stages:
        dataset = _staged(ray, dataset, stage)
    try:
        with _quiet():
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for share in Share.of_table(table):
                    if _ERROR in share.values:
                        kind, text = share.values[_ERROR]
                        raise getattr(errors_module, kind)(text)
                    yield share
    except ray.exceptions.RayTaskError:
        raise  # a bug, with the traceback of where it happened
    except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ClusterError(f"the Ray cluster must keep what is computed in it, got: {reason}; run it again") from error


def _staged(ray: Any, dataset: Any, stage: Stage) -> Any:
    # without a word about them, actors with GPUs would take the processors that those before them wait for
    resources = {"num_gpus": stage.gpus, "num_cpus": 0} if stage.gpus else {"num_cpus": stage.cpus}
    common = {"batch_size": 1, "batch_format": "pyarrow", **resources}  # one row is one share
    if stage.actors is None:
        return dataset.map_batches(_work_once, fn_kwargs={"start": stage.start}, **common)
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=stage.actors, initial_size=stage.actors,
        max_concurrent_calls_per_actor=stage.calls, enable_true_multi_threading=stage.calls > 1,
    )  # fmt: skip
    return dataset.map_batches(_Worker, fn_constructor_kwargs={"start": stage.start}, compute=pool, **common)


def _ray_data() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"work in shares needs Ray's package data, it cannot be imported ({error}): pip install 'featcache[ray]'"
        ) from error
    return ray


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's remarks on how it goes about its work off the user's screen."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Worker:
    """What Ray makes an actor of: opened once, then it works on share after share."""

    def __init__(self, start: Callable[[], Work]) -> None:
        self._work: Work | FeatcacheError
        try:
            self._work = start()
        except FeatcacheError as error:
            self._work = error  # raised here, Ray would try again and again

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        import pyarrow

        return pyarrow.concat_tables([_answer(self._work, share).to_table() for share in Share.of_table(table)])


def _work_once(table: pyarrow.Table, start: Callable[[], Work]) -> pyarrow.Table:
    answer: pyarrow.Table = _Worker(start)(table)
    return answer


def _answer(work: Work | FeatcacheError, share: Share) -> Share:
    if _ERROR in share.values:
        return share
    try:
        if isinstance(work, FeatcacheError):
            raise work
        return work(share)
    except FeatcacheError as error:
        return Share({_ERROR: [type(error).__name__, str(error)]})
