"""Packages from the npm registry that a device format ships or runs: fetched by `targets install` alone, by npm itself.

Version and digest of the package are part of featcache; nothing of it is run when it is installed, and only the files
that are used are kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from featcache.errors import DependencyError
from featcache.system.files import cache_home, new_directory, write_atomically
from featcache.system.json import parse_json

_DRIVERS = Path(__file__).parent.parent / "drivers"
_MARKER = "installed.json"
_QUIET = {"npm_config_update_notifier": "false", "npm_config_audit": "false", "npm_config_fund": "false"}


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """One package in one version. `integrity`: ``sha512-`` and the base64 digest of its archive, as npm states it.

    `files`: what is kept, paths inside the package. `megabytes`: what they take on the disk.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]
    megabytes: int
    kind: ClassVar[str] = "npm"

    def path(self) -> Path:
        """Return the folder that its files are in, fetched or not."""
        return cache_home() / "targets" / self.name

    def kept(self) -> tuple[Path, ...]:
        """Return the paths of its files, in the order of `files`."""
        return tuple(self.path() / Path(file).name for file in self.files)

    def reason(self) -> str | None:
        """Return why it cannot be used, or None."""
        marker = self.path() / _MARKER
        if not marker.exists():
            return f"the npm package {self.name} is not installed ({self.megabytes} MB)"
        try:
            stored = parse_json(marker.read_bytes())
        except ValueError:
            stored = None
        if stored != self._stated():
            return f"the npm package {self.name} is here in another version than this featcache was tested with"
        return None

    def needs(self) -> str:
        """Return what must be there before it can be installed, for people."""
        return "npm"

    def install(self) -> Path:
        """Fetch it and return its folder; an interrupted installation leaves nothing.

        Raises `DependencyError` where there is no npm, npm cannot get the package, or got another.
        """
        npm = shutil.which("npm")
        if npm is None:
            raise DependencyError(
                f"{self.name} must be fetched with npm, which is not on the PATH: install Node.js (Debian: apt-get "
                "install npm)"
            )
        with new_directory(self.path(), overwrite=True) as folder, tempfile.TemporaryDirectory() as scratch:
            # `pack` fetches the archive and runs none of its scripts
            command = [npm, "pack", f"{self.name}@{self.version}", "--ignore-scripts", "--silent"]
            done = subprocess.run(
                command, cwd=scratch, capture_output=True, encoding="utf-8", check=False, env={**os.environ, **_QUIET}
            )
            archives = sorted(Path(scratch).glob("*.tgz"))
            if done.returncode or len(archives) != 1:
                lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
                raise DependencyError(f"{self.name} {self.version} must install, npm says: {lines[-1]}")
            self._keep(archives[0], folder)
            write_atomically(folder / _MARKER, json.dumps(self._stated()).encode())
        return self.path()

    def _keep(self, archive: Path, folder: Path) -> None:
        kind, _, stated = self.integrity.partition("-")
        with open(archive, "rb") as file:
            digest = hashlib.file_digest(file, kind).digest()
        if digest != base64.b64decode(stated, validate=True):
            raise DependencyError(
                f"{self.name} {self.version} must have the digest {self.integrity}, npm brought another file with "
                f"{kind}-{base64.b64encode(digest).decode()}"
            )
        try:
            with tarfile.open(archive) as packed:
                for file_name in self.files:
                    member = packed.extractfile(f"package/{file_name}")
                    if member is None:
                        raise KeyError(file_name)
                    write_atomically(folder / Path(file_name).name, member.read())
        except (tarfile.TarError, KeyError, EOFError, binascii.Error) as error:
            raise DependencyError(f"{self.name} {self.version} must hold {self.files!r}, got {error!r}") from error

    def _stated(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "integrity": self.integrity}


@dataclass(frozen=True, slots=True)
class NodeProgram:
    """A driver that Node.js runs with `packages`; it is started with the path of the first file of each."""

    name: str
    program: str
    packages: tuple[NpmPackage, ...]
    kind: ClassVar[str] = "npm"

    @property
    def megabytes(self) -> int:
        """What it takes on the disk."""
        return sum(package.megabytes for package in self.packages)

    def reason(self) -> str | None:
        """Return why it cannot be run, or None."""
        missing = next((reason for package in self.packages if (reason := package.reason()) is not None), None)
        if missing is None and _find_node() is None:
            return "Node.js is not on the PATH"
        return missing

    def needs(self) -> str:
        """Return what must be there before it can be installed, for people."""
        return "Node.js and npm"

    def install(self) -> Path:
        """Fetch the packages that are not here and return the folder of the first; raises as `NpmPackage.install`."""
        for package in self.packages:
            if package.reason() is not None:
                package.install()
        return self.packages[0].path()

    def command(self) -> list[str]:
        """Return what starts the driver."""
        return [_find_node() or "node", str(_DRIVERS / self.program), *(str(p.kept()[0]) for p in self.packages)]


def _find_node() -> str | None:
    return shutil.which("node") or shutil.which("nodejs")
