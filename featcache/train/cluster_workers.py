"""Workers that are actors of a Ray cluster, each with its part of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from featcache.errors import ClusterError, FeatcacheError, InputError
from featcache.heads.solvers.parts import Held, Part, Workers
from featcache.system.cluster import ClusterSettings
from featcache.system.machine import memory_bytes_of_machine

T = TypeVar("T")

RESTARTS = 4  # of one actor: one that is ended again and again, as for want of memory, ends the training
_PUT_BYTES = 1 << 15  # arguments from this size on go to each machine once, not to each actor


class _Actor:
    """A part in a process of its own; started again, it is empty and reads its rows at the next question."""

    def __init__(self, memory_bytes: int | None, neighbours: int) -> None:
        memory = memory_bytes_of_machine() if memory_bytes is None else 2 * memory_bytes
        self._part = Part(None if memory is None else memory // (2 * neighbours))

    def ask(self, product: Callable[..., T], *arguments: Any) -> T:
        return product(self._part, *arguments)


class _Kept(Held):
    """A value in the cluster's object store, and here."""

    __slots__ = ("reference",)

    def __init__(self, value: Any, reference: Any) -> None:
        super().__init__(value)
        self.reference = reference


class ClusterWorkers(Workers):
    """Actors in the Ray cluster that this process is connected to.

    Parameters
    ----------
    ray
        The module, as `featcache.system.cluster.cluster` gives it.
    settings
        How many actors; each takes its share of a machine's processors.
    memory_bytes
        Of rows that all actors of one machine hold in memory; None: half of what the machine has. What goes beyond is
        held in files there.

    Raises
    ------
    InputError
        For more actors than the cluster has processors. `ClusterError` is raised later, by what is asked of an actor
        that is lost again and again.
    """

    def __init__(self, ray: Any, settings: ClusterSettings, *, memory_bytes: int | None = None) -> None:
        actors, processors = settings.actors_and_processors(ray)
        room = int(ray.cluster_resources().get("CPU", 0))
        if actors * processors > room:
            raise InputError(f"actors must be at most as many as the cluster's {room} processors, got {actors}")
        super().__init__(actors)
        machines = sum(1 for node in ray.nodes() if node["Alive"])
        actor = ray.remote(
            num_cpus=processors, max_restarts=RESTARTS, max_task_retries=-1, scheduling_strategy="SPREAD"
        )(_Actor)
        self._ray = ray
        self.actors = [actor.remote(memory_bytes, -(-actors // machines)) for _ in range(actors)]

    def close(self) -> None:
        """End the actors; what they hold is gone."""
        for actor in self.actors:
            self._ray.kill(actor)

    def _keep(self, value: Any) -> Held:
        return _Kept(value, self._ray.put(value))

    def _run(
        self, product: Callable[..., T], at: Sequence[int], each: Sequence[tuple[Any, ...]], common: tuple[Any, ...]
    ) -> list[T]:
        shared = [self._argument(item) for item in common]
        questions = [
            self.actors[worker].ask.remote(product, *map(self._argument, own), *shared)
            for worker, own in zip(at, each, strict=True)
        ]
        exceptions = self._ray.exceptions
        try:
            return [self._ray.get(question) for question in questions]
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, FeatcacheError):
                raise error.cause from None
            raise
        except exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterError(
                f"an actor must stay to answer for its rows, got after {RESTARTS} new starts: {reason}; give more "
                "actors (--actors), or less memory (--memory-gb)"
            ) from error

    def _argument(self, item: Any) -> Any:
        if isinstance(item, _Kept):
            return item.reference
        if isinstance(item, Held):
            return item.value
        large = isinstance(item, np.ndarray) and item.nbytes >= _PUT_BYTES
        return self._ray.put(item) if large else item
