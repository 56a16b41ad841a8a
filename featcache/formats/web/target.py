"""The web: ``web/``, a static page that classifies a photo, the camera or a text with onnxruntime-web shipped inside.

It is the same ONNX file. Decoding is the browser's, resizing the page's own, and both are run here in a headless
Chromium: on the pixels that every format gets, and from the bytes of the image files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.formats.interface import HALVES, Converted, ModelFacts, Runner, Target, classifier_tensors, numbers_of
from featcache.formats.tools.npm import NpmPackage
from featcache.formats.web.browser import Browser, find_chromium
from featcache.system.files import write_atomically

_PAGE = Path(__file__).parent / "assets"
_SHARED = ("answer.js", "classifier.js", "local.js", "style.css")
_OWN = {  # by input kind: what its page has beside that, and where it lies here
    "image": ("images", ("index.html", "app.js", "input.js", "file.js", "resize.js")),
    "text": ("texts", ("index.html", "app.js", "input.js")),
}
_TOKENIZER = _PAGE / "tokenizer"
_LICENSE = "ort-license.txt"
_MODULE = "driver/classify.js"
_WARM_UP = 5


class WebTarget(Target):
    """Serve the folder anywhere; it reads nothing outside itself, which its content security policy also forbids.

    Of texts the tokenizer runs in the page, too.
    """

    name = "web"
    needs = "featcache targets install web; to run it here: Chromium (Debian: apt-get install chromium)"
    environment = NpmPackage(
        name="onnxruntime-web",
        version="1.30.0",
        integrity="sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        files=("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
        megabytes=15,
    )

    def available(self) -> str | None:
        """Return why the page cannot be made here, or None."""
        return self.environment.reason()

    def executable(self) -> str | None:
        """Return why the page is not opened here, or None."""
        if find_chromium() is None:
            return "the page is run in Chromium, which is not on this machine (nor named in FEATCACHE_CHROMIUM)"
        return None

    def version(self) -> str:
        """Return the version of onnxruntime-web."""
        return f"{self.environment.name} {self.environment.version}"

    def convert(self, onnx_path: Path, folder: Path, *, facts: ModelFacts) -> Converted:
        """Write the page, the runtime, the model and its description."""
        self.require()
        contents = _page(facts.input.preprocessing.input)
        contents |= facts.input.assets
        contents["model.onnx"] = onnx_path.read_bytes()
        described = {
            "name": facts.name,
            "labels": list(facts.classes),
            "task": facts.task,
            "unknown": None if facts.unknown is None else dict(facts.unknown),
            "preprocessing": facts.input.preprocessing.to_json(),
        }
        contents["model.json"] = json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        for path in self.environment.kept():
            contents[f"ort/{path.name}"] = path.read_bytes()
        contents[f"ort/{_LICENSE}"] = (_PAGE / _LICENSE).read_bytes()
        for name, data in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            write_atomically(folder / name, data)
        numbers = numbers_of(facts, integers=None, halves=HALVES)
        return Converted(tuple(folder / name for name in contents), classifier_tensors(facts), numbers)

    def open(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the page's classifier in a headless Chromium, on one thread whatever `threads` says.

        A page has threads only where its server sends the headers that isolate it, which a static one seldom does.
        """
        return _WebRunner(files[0].parent, self.version())

    def reference_runner(self, files: Sequence[Path], *, threads: int) -> Runner:
        """Return the page's ONNX file in ONNX Runtime."""
        from featcache.formats.onnx import OnnxTarget

        (model,) = [path for path in files if path.suffix == ".onnx"]
        runner = OnnxTarget().open([model], threads=threads)
        runner.described = "the page's ONNX file, computed by ONNX Runtime"
        return runner


def _page(kind: str) -> dict[str, bytes]:
    """Return the page's own files for an input kind, by name; `NotImplementedError` where there is none."""
    if kind not in _OWN:
        raise NotImplementedError(f"it has pages for {sorted(_OWN)!r}, this model is of {kind!r}")
    folder, names = _OWN[kind]
    files = {name: _PAGE / name for name in _SHARED} | {name: _PAGE / folder / name for name in names}
    if kind == "text":
        files |= {f"tokenizer/{path.name}": path for path in sorted(_TOKENIZER.glob("*.js"))}
    return {name: path.read_bytes() for name, path in files.items()}


class _WebRunner(Runner):
    threads = 1

    def __init__(self, folder: Path, version: str) -> None:
        self._browser = Browser({"web": folder})
        try:
            loaded, _ = self._browser.call(_MODULE, "load")
        except BaseException:
            self._browser.close()
            raise
        browser = re.search(r"Chrom\w*/(\d+)", loaded["agent"])
        self.described = f"{version} in Chromium {browser[1] if browser else '(version unknown)'}"

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the logits."""
        data = np.ascontiguousarray(images).tobytes()
        return self._logits(self._browser.call(_MODULE, "run", payload=data, count=len(images))[1], len(images))

    def run_files(self, sources: Sequence[Callable[[], bytes]]) -> npt.NDArray[np.float32]:
        """Return the logits (n, n_classes) of image files, decoded by the browser and resized by the page."""
        encoded = [source() for source in sources]
        sizes = [len(data) for data in encoded]
        answer = self._browser.call(_MODULE, "runFiles", payload=b"".join(encoded), sizes=sizes)[1]
        return self._logits(answer, len(encoded))

    def time(self, image: npt.NDArray[Any], *, seconds: float, least: int) -> list[float]:
        """Return milliseconds of single runs, measured in the page; of runs below 2 ms, the mean of several."""
        values = {"seconds": seconds, "least": least, "warmUp": _WARM_UP}
        answer = self._browser.call(_MODULE, "time", payload=np.ascontiguousarray(image).tobytes(), **values)[1]
        return [float(value) for value in np.frombuffer(answer, dtype=np.float64)]

    def close(self) -> None:
        """End the browser."""
        self._browser.close()

    @staticmethod
    def _logits(answer: bytes, count: int) -> npt.NDArray[np.float32]:
        return np.frombuffer(answer, dtype=np.float32).reshape(count, -1).copy()
