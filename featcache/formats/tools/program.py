"""Speak to a program in an environment of its own: JSON lines through its pipes, arrays through npy files."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featcache.errors import VerificationError
from featcache.formats.interface import (
    FLOATS_FOR_INTEGERS,
    Converted,
    ModelFacts,
    Runner,
    Target,
    numbers_of,
    single_tensors,
)
from featcache.formats.tools.environments import Environment


class Startable(Protocol):
    """A program that speaks `drivers.protocol`, with the tools it needs."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def command(self) -> list[str]:
        """Return what starts it."""


class Program:
    """A running driver; every call waits for its answer. Use as a context manager, which ends it."""

    def __init__(self, environment: Startable, *, threads: int = 1) -> None:
        self._name = environment.name
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self._scratch.name)
        self._errors = self.folder / "stderr"
        hidden = ("PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV")
        variables = {key: value for key, value in os.environ.items() if key not in hidden}
        variables |= {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # files must not depend on the order of a set
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",  # one of the tools brings a hub client: it has nothing to ask anybody
            "CUDA_VISIBLE_DEVICES": "",
        }
        with open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                environment.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                cwd=self.folder,
                env=variables,
            )

    def call(self, name: str, **arguments: Any) -> Any:
        """Return what the program's method `name` returns; `VerificationError` with its last word where it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise VerificationError(
                f"the tools of {self._name!r} must {name} this model, they failed: {self._last_word()}"
            )
        return json.loads(answer)["value"]

    def _last_word(self) -> str:
        """Return the line in which the program said why it ended."""
        status = self._process.wait()
        text = self._errors.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        named = [line for line in lines if line.split(":")[0].replace(".", "").isidentifier() and "Error" in line]
        return (named or lines or [f"exit status {status}"])[-1][:500]

    def close(self) -> None:
        """End the program."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it ended before reading its last request
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._scratch.cleanup()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ProgramRunner(Runner):
    """A device file opened in another environment's runtime."""

    def __init__(self, environment: Startable, files: Sequence[Path], *, threads: int) -> None:
        self._program = Program(environment, threads=threads)
        try:
            self._program.call("load", files=[str(path.resolve()) for path in files], threads=threads)
        except BaseException:
            self._program.close()
            raise

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        source, out = self._put(images), self._program.folder / "logits.npy"
        self._program.call("run", images=str(source), out=str(out))
        logits: npt.NDArray[np.float32] = np.load(out, allow_pickle=False)
        return logits

    def time(self, image: npt.NDArray[np.uint8], *, seconds: float, least: int) -> list[float]:
        """Return milliseconds of single runs, measured inside the program."""
        times: list[float] = self._program.call("time", image=str(self._put(image)), seconds=seconds, least=least)
        return times

    def resident_bytes(self) -> int | None:
        """Return what the program measured of itself."""
        count: int | None = self._program.call("resident")
        return count

    def close(self) -> None:
        """End the program."""
        self._program.close()

    def _put(self, images: npt.NDArray[np.uint8]) -> Path:
        place = self._program.folder / "images.npy"
        np.save(place, images, allow_pickle=False)
        return place


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an environment's converter is handed. `graph`: the file. `settings`: of the format, for its program.

    `numbers`, `takes_scales`: as of `Converted`.
    """

    graph: Path
    settings: Mapping[str, Any]
    numbers: str | None
    takes_scales: bool = False


class EnvironmentTarget(Target):
    """A format whose tools live in an `environment` of their own; `convert` hands them the graph for one image."""

    environment: Environment

    @property
    def needs(self) -> str:  # type: ignore[override]
        """How to get the tools."""
        return f"featcache targets install {self.name}"

    def available(self) -> str | None:
        """Return why the environment cannot be used here, or None."""
        return self.environment.reason()

    def version(self) -> str:
        """Return the runtime's name and version."""
        return self.environment.version()

    def tensors(self, facts: ModelFacts) -> dict[str, Any]:
        """Return the tensors of the files: the reference form for one image at a time."""
        return single_tensors(facts)

    def prepare(self, onnx_path: Path, scratch: Path, *, facts: ModelFacts) -> Prepared:
        """Return what the tools are handed, made in `scratch`: the graph with a batch of one, for floats."""
        from featcache.graph.passes import write_single

        single = write_single(onnx_path, scratch / "single.onnx")
        return Prepared(single, {}, numbers_of(facts, integers=FLOATS_FOR_INTEGERS))

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Have the environment's tools write the files."""
        self.require()
        with tempfile.TemporaryDirectory() as scratch, Program(self.environment) as program:
            prepared = self.prepare(onnx_path, Path(scratch), facts=facts)
            described = {**describe_for_program(facts), **prepared.settings}
            names = program.call("convert", graph=str(prepared.graph), folder=str(folder.resolve()), facts=described)
        files = tuple(folder / name for name in names)
        return Converted(files, self.tensors(facts), prepared.numbers, takes_scales=prepared.takes_scales)

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the model, loaded inside the environment."""
        self.require()
        return ProgramRunner(self.environment, files, threads=threads)


def describe_for_program(facts: ModelFacts) -> dict[str, Any]:
    """Return what a converter's program needs to know of the model, as JSON values."""
    from featcache.formats.labels import labels_text

    height, width, _ = facts.image_shape
    return {
        "name": facts.name,
        "shape": [1, height, width, 3],
        "labels_text": labels_text(facts.classes),
        "input_text": f"RGB, {width} x {height} pixels, bytes 0 to 255, made as preprocess.json says",
    }
