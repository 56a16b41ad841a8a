"""Virtual environments for tools that cannot live beside ours: other pins, another Python, or hundreds of megabytes.

Each is made by `install` only, below the user's cache folder, from a list of exact versions that is part of the
package. Nothing is imported from one: a program of `featcache.formats.drivers` runs inside and is spoken to over files.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from featcache.errors import DependencyError
from featcache.system.files import cache_home, new_directory, user_home, write_atomically
from featcache.system.json import parse_json

_DRIVERS = Path(__file__).parent.parent / "drivers"
_MARKER = "installed.json"


class Installation(Protocol):
    """What a format needs that is installed apart from featcache's own packages, when the user asks for it."""

    @property
    def kind(self) -> str:
        """One word for people: what it is."""

    @property
    def megabytes(self) -> int:
        """What it takes on the disk."""

    def needs(self) -> str:
        """Return what must be there before it can be installed, for people."""

    def reason(self) -> str | None:
        """Return why it cannot be used, or None."""

    def install(self) -> Path:
        """Make it, or make it anew, and return its folder; `DependencyError` where that cannot be."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The tools of a format, apart from ours.

    `program`: the driver that runs inside. `requirements`: the file of exact versions beside it. `reports`: the package
    whose version is the runtime's. `python`: the version it must have, None for the running one, which then lends its
    packages (torch, numpy, onnx). `megabytes`: what it takes on the disk. `machines`: processors it has wheels for.
    `programs`: the folder where `program` and `requirements` lie.
    """

    name: str
    program: str
    requirements: str
    reports: str
    megabytes: int
    python: str | None = None
    machines: tuple[str, ...] = ()
    programs: Path = _DRIVERS
    kind: ClassVar[str] = "environment"

    def path(self) -> Path:
        """Return the folder it lives in, made or not."""
        return cache_home() / "targets" / self.name

    def interpreter(self) -> Path:
        """Return its Python."""
        return self.path() / "bin" / "python"

    def command(self) -> list[str]:
        """Return what starts its program."""
        return [str(self.interpreter()), str(self.programs / self.program)]

    def pins(self) -> str:
        """Return the text of its list of exact versions."""
        return (self.programs / self.requirements).read_text(encoding="utf-8")

    def reason(self) -> str | None:
        """Return why it cannot be used, or None."""
        marker = self.path() / _MARKER
        if not marker.exists():
            return f"its environment is not installed ({self.megabytes} MB)"
        try:
            stored = parse_json(marker.read_bytes())
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or stored.get("pins") != self.pins():
            return "its environment holds other versions than this featcache was tested with"
        if stored.get("beside") != self._beside() or not self.interpreter().exists():
            return "its environment was made for another Python than the one that runs"
        return None

    def version(self) -> str:
        """Return name and version of the runtime inside."""
        pins = dict(line.split("==") for line in self.pins().splitlines() if "==" in line)
        return f"{self.reports} {pins[self.reports]}"

    def needs(self) -> str:
        """Return what must be there before it can be installed, for people."""
        return f"Python {self.python}" if self.python else "this Python"

    def install(self) -> Path:
        """Make it, or make it anew, and return its folder; an interrupted installation leaves nothing.

        Raises `DependencyError` where there is no such Python or pip cannot get a package.
        """
        if self.machines and platform.machine() not in self.machines:
            raise DependencyError(
                f"{self.name!r} must run on {' or '.join(self.machines)}, this is {platform.machine()}: its makers "
                "publish nothing else"
            )
        python = sys.executable if self.python is None else find_python(self.python)
        with new_directory(self.path(), overwrite=True) as folder:
            _run([python, "-m", "venv", str(folder)], self.name)
            inside = str(folder / "bin" / "python")
            beside = self._beside()
            if beside:
                (site,) = folder.glob("lib/python*/site-packages")
                # what is found here comes after the environment's own packages, so its versions win
                lines = "; ".join(f"site.addsitedir({place!r})" for place in beside)
                (site / "_beside.pth").write_text(f"import site; {lines}\n", encoding="utf-8")
            pinned = folder / "requirements.txt"
            pinned.write_text(self.pins(), encoding="utf-8")
            _run([inside, "-m", "pip", "install", "--quiet", "--requirement", str(pinned)], self.name)
            marker = {"pins": self.pins(), "beside": beside}
            write_atomically(folder / _MARKER, json.dumps(marker).encode())
        return self.path()

    def _beside(self) -> list[str]:
        """Return the folders of the running Python's packages that it sees too."""
        if self.python is not None:
            return []
        return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def find_python(version: str) -> str:
    """Return the path of a Python of `version` (such as ``3.7``); `DependencyError` where there is none.

    Looked at in turn: the variable ``FEATCACHE_PYTHON37``, the PATH, pyenv's versions, uv's.
    """
    named = os.environ.get(f"FEATCACHE_PYTHON{version.replace('.', '')}")
    homes = [
        Path(os.environ.get("PYENV_ROOT", user_home() / ".pyenv")) / "versions",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", user_home() / ".local/share/uv/python")),
    ]
    pythons = [path for home in homes for path in sorted(home.glob(f"*{version}.*/bin/python{version}"), reverse=True)]
    for candidate in [named, shutil.which(f"python{version}"), *map(str, pythons)]:
        # pyenv puts programs on the PATH that only say they are not chosen: it has to answer
        if candidate and _answers(candidate, version):
            return candidate
    raise DependencyError(
        f"a Python {version} must be on this machine, none is: get one with 'uv python install {version}' or 'pyenv "
        f"install {version}', or name one in FEATCACHE_PYTHON{version.replace('.', '')}"
    )


def _answers(python: str, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, encoding="utf-8", timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and answer.stdout.strip() == version


def _run(command: list[str], name: str) -> None:
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        command, stdout=sys.stderr, stderr=subprocess.PIPE, encoding="utf-8", check=False, env=environment, cwd="/"
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise DependencyError(f"the environment {name!r} must install, pip says: {errors[-1]}")


def install_packages(packages: tuple[str, ...]) -> None:
    """Install `packages` with pip into the running environment; `DependencyError` where pip cannot."""
    _run([sys.executable, "-m", "pip", "install", "--quiet", *packages], ", ".join(packages))
