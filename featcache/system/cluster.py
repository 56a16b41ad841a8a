"""A Ray cluster to compute in: one of this process's own, or one that runs elsewhere.

Ray places the work on machines and carries the arrays between them. It comes with the extra ``ray``; it reports its use
to nobody (`featcache.system.process`), and what its workers print does not reach the results on stdout.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from featcache.errors import DependencyError, InputError, StorageError
from featcache.system.threads import processor_count

LOCAL = "local"
_ANSWER_SECONDS = 5.0
_WORKER_SECONDS = 60.0
_DEFAULT_PORT = 6379
_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # of Ray to reach the head, one a second; 20 unless told
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:/\s]+):(\d{1,5})")
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
# A client of HTTP/2, so of gRPC, begins with these bytes and its (empty) settings; a server answers with its own.
_HTTP2_START = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = 4
_MOST_THREADS = 32  # of an actor: more of them wait for the interpreter's lock


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Where work is done, and by how much.

    Parameters
    ----------
    address
        As for `cluster`.
    actors
        How many compute; None: as many as the cluster has room for, one on each machine without GPUs.
    gpus_per_actor
        Of each; a part of one, such as 0.25, lets several share it. 0: they compute on processors.

    Raises
    ------
    InputError
        For an address of another form, and numbers that make no sense.
    """

    address: str
    actors: int | None = None
    gpus_per_actor: float = 0.0

    def __post_init__(self) -> None:
        check_address(self.address)
        if self.actors is not None and self.actors < 1:
            raise InputError(f"actors must be at least 1, got {self.actors!r}")
        whole = self.gpus_per_actor == int(self.gpus_per_actor)
        if not (0 <= self.gpus_per_actor < 1 or (self.gpus_per_actor > 0 and whole)):
            raise InputError(
                f"gpus_per_actor must be a whole number, or a part of one between 0 and 1, got {self.gpus_per_actor!r}"
            )

    @classmethod
    def of(cls, address: str | None, actors: int | None, gpus_per_actor: float) -> ClusterSettings | None:
        """Return the settings of these arguments of a verb, None without a cluster.

        Raises `InputError` as the class, and for the others without an address.
        """
        if address is not None:
            return cls(address, actors, gpus_per_actor)
        if actors is not None or gpus_per_actor:
            raise InputError("actors and gpus_per_actor need a cluster to be in: name it with --ray, or leave them out")
        return None

    def actors_and_processors(self, ray: Any) -> tuple[int, int]:
        """Return how many actors there will be at most, and how many processors each of them gets."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self.gpus_per_actor:
            room = sum(int(machine.get("GPU", 0) / self.gpus_per_actor) for machine in machines)
            return self.actors or max(1, room), 1
        counts = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
        if not counts:
            return self.actors or 1, 1  # of a cluster that grows when it is asked to
        most = min(max(counts) if self.actors else min(counts), _MOST_THREADS)
        if not self.actors:
            return sum(count // most for count in counts), most
        fitting = [size for size in range(1, most + 1) if sum(count // size for count in counts) >= self.actors]
        return self.actors, max(fitting, default=1)


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect this process to a Ray cluster inside the block; the block gets the module `ray`.

    A process that is in a cluster already stays in it, where `address` names that one, ``local`` or ``auto``.

    Parameters
    ----------
    address
        ``local``: a cluster of this machine alone, started for the block and ended with it. ``HOST:PORT``: the head of
        a cluster that runs (`ray start --head` prints it). ``auto``: the one that ``RAY_ADDRESS`` names, or that runs
        on this machine.

    Raises
    ------
    DependencyError
        Where Ray is not installed, or featcache is not where the cluster computes.
    InputError
        For an address of another form, one where no cluster answers within seconds, and a cluster of another version of
        Ray, Python or featcache.

    Examples
    --------
    >>> with cluster("nowhere"):
    ...     pass
    Traceback (most recent call last):
    featcache.errors.InputError: a Ray cluster must be named by HOST:PORT, 'auto' or 'local', got 'nowhere'
    """
    check_address(address)
    ray = _ray()
    if ray.is_initialized():
        current = ray.get_runtime_context().gcs_address
        if address not in (LOCAL, "auto", current):
            raise InputError(f"this process must not be in another Ray cluster, it is in {current!r}: end that first")
        yield ray
        return
    with _own_folder() if address == LOCAL else _answering(address) as folder:
        try:
            _connect(ray, address, folder)
            if folder is None:
                _check_workers(ray)
            yield ray
        finally:
            ray.shutdown()


def check_address(address: str) -> None:
    """Raise `InputError` for what cannot be the address of a cluster."""
    if address not in (LOCAL, "auto") and not _ADDRESS.fullmatch(address):
        advice = f": name its head, port {_DEFAULT_PORT} unless told otherwise" if "://" in address else ""
        raise InputError(f"a Ray cluster must be named by HOST:PORT, 'auto' or 'local', got {address!r}{advice}")


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DependencyError(
            "a cluster needs the package ray, it is not installed: pip install 'featcache[ray]'"
        ) from error
    return ray


@contextmanager
def _own_folder() -> Iterator[str]:
    """Yield a folder for the sockets and logs of a cluster of our own, which leaves none of them behind."""
    # The name of a socket may have 107 characters, and Ray adds 70: a long TMPDIR would not do.
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="featcache-ray-", dir=base, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Raise `InputError` unless a server of gRPC answers at `address`: Ray itself would try for minutes."""
    if address != "auto" and os.environ.get("RAY_USE_TLS", "0") == "0":
        host, port = _ADDRESS.fullmatch(address).groups()  # type: ignore[union-attr] # the caller has checked it
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
                connection.sendall(_HTTP2_START)
                head = connection.recv(9, socket.MSG_WAITALL)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise InputError(f"a Ray cluster must answer at {address!r}, got: {reason}") from error
        if len(head) < 9 or head[3] != _SETTINGS_FRAME:
            raise InputError(f"a Ray cluster must answer at {address!r}, got: another kind of server")
    yield None


def _connect(ray: Any, address: str, folder: str | None) -> None:
    own = {"num_cpus": processor_count(), "include_dashboard": False, "_temp_dir": folder} if folder else {}
    before = signal.getsignal(signal.SIGTERM)
    if folder is None:
        os.environ.setdefault(_ATTEMPTS, f"{_ANSWER_SECONDS:.0f}")
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (RuntimeError, ConnectionError, ValueError) as error:
        _refuse(address, error)
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has put its own in its place


def _refuse(address: str, error: Exception) -> None:
    versions = _VERSIONS.findall(str(error))
    if len(versions) == 2:
        (theirs, their_python), (ours, our_python) = versions
        raise InputError(
            f"the Ray cluster at {address!r} must have this process's versions, Ray {ours} and Python {our_python}, "
            f"it has Ray {theirs} and Python {their_python}: install its versions here, or another cluster"
        ) from error
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if address == LOCAL:
        raise StorageError(f"Ray must start on this machine, got: {reason}") from error
    raise InputError(f"a Ray cluster must answer at {address!r}, got: {reason}") from error


def _check_workers(ray: Any) -> None:
    """Raise unless featcache is there, in this version, where a cluster that was not started by us computes."""
    mine = version("featcache")
    try:
        theirs = ray.get(ray.remote(num_cpus=0)(_version_there).remote(), timeout=_WORKER_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise InputError(f"the Ray cluster must run a task within {_WORKER_SECONDS:.0f} s, it did not") from error
    except (ray.exceptions.RayTaskError, ImportError, RuntimeError) as error:
        raise DependencyError(
            f"featcache {mine} must be installed where the Ray cluster computes, it is not: pip install it there"
        ) from error
    if theirs != mine:
        raise InputError(f"featcache must be {mine} where the Ray cluster computes, as here, it is {theirs}")


def _version_there() -> str:
    return version("featcache")
