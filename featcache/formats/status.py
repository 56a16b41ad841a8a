"""`targets`: which device formats this machine can make and run, and the installation of what the others need."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featcache.errors import DependencyError, InputError
from featcache.formats.registry import find_target, target_names
from featcache.formats.tools.environments import install_packages


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """One format here. `missing`: why it cannot be made, None where it can; `unexecuted`: why it cannot be run.

    `kind`: ``own`` (featcache's dependencies do), ``extra`` (pip, beside them) ``environment`` (apart from
    them) or ``npm`` (files from the npm registry).
    """

    name: str
    kind: str
    missing: str | None
    unexecuted: str | None
    version: str | None
    needs: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "installed": self.missing is None,
            "executable": self.missing is None and self.unexecuted is None,
            "reason": self.missing or self.unexecuted,
            "version": self.version,
            "needs": self.needs,
        }


def list_targets() -> list[TargetStatus]:
    """Return the state of every format, in the order of reports. Nothing is installed, loaded or asked of a network."""
    statuses = []
    for name in target_names():
        target = find_target(name)
        missing = target.available()
        kind = target.environment.kind if target.environment else "extra" if target.packages else "own"
        version = None if missing else target.version()
        needs = target.needs
        if target.environment is not None:
            needs = f"{needs} ({target.environment.needs()}, {target.environment.megabytes} MB)"
        statuses.append(TargetStatus(name, kind, missing, missing or target.executable(), version, needs))
    return statuses


def install_targets(names: Sequence[str]) -> list[TargetStatus]:
    """Install what the formats `names` need (``all``: every one) and return their state; installed ones are kept.

    Packages that can live beside featcache go where it runs, the others into an environment of their own below the
    user's cache folder. Raises `InputError` for an unknown name, and after the last one `DependencyError` naming each
    that could not be installed.
    """
    chosen = [*dict.fromkeys(target_names() if "all" in names else names)]
    if not chosen:
        raise InputError("targets install must be given a format or 'all', got none")
    failed = []
    for name in chosen:
        target = find_target(name)
        if target.available() is None:
            continue
        try:
            if target.environment is not None:
                target.environment.install()
            elif target.packages:
                install_packages(target.packages)
                importlib.invalidate_caches()
            target.require()
        except DependencyError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise DependencyError("; ".join(failed))
    return [status for status in list_targets() if status.name in chosen]
