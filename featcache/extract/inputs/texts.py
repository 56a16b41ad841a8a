"""Texts as an input kind: encoders with their tokenizers, batches of texts of about one length."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featcache.datasets.listing import Listing, Task
from featcache.datasets.text_scan import TEXT_EXTENSIONS, scan_texts, tables_in
from featcache.datasets.walk import has_image_extension
from featcache.engines.registry import find_engine
from featcache.engines.text.buckets import Buckets
from featcache.errors import FormatError, InputError, MissingError, SampleError, StorageError
from featcache.extract.computed import ComputedRows, StageClock
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.interface import (
    Extractor,
    Input,
    Loader,
    columns_of,
    computed_by,
    key_rows,
    precision_here,
)
from featcache.extract.request import Request, file_stamp
from featcache.recipe import InputPreprocessing, Recipe, TextPreprocessing
from featcache.system.objects import is_url
from featcache.system.sources.batches import Source
from featcache.system.sources.opening import is_container
from featcache.system.sources.parts import open_parts
from featcache.system.sources.text_columns import TEXT_NAMES
from featcache.system.sources.text_encoding import decode_utf8, read_text
from featcache.system.sources.text_table import is_text_table

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone
    from featcache.backbone.text.tokenizer import TextTokenizer, TokenIds
    from featcache.engines.text.interface import TextEngine

_HEAD = 1 << 16  # bytes of a table that are looked at for its header
_ROOM = 64


@dataclass(frozen=True, slots=True)
class TextExtractor(Extractor):
    """A `TextEngine`, its Recipe, and the tokenizer that stands before it."""

    tokenizer: TextTokenizer


class TextInput(Input):
    """Rows of tables and ``.txt`` files, UTF-8."""

    name, noun = "text", "text"
    shown = "text"
    scan_options = ("text_column", "label_column")
    recipe_options = ("max_length", "pooling", "normalize", "prefix")

    def recognizes(self, source: str) -> bool:
        """Return whether it is a table with a column of texts, or a folder of such tables or of ``.txt`` files."""
        if is_url(source):
            return is_text_table(source) and _has_texts(source)
        if os.path.isdir(source):
            return _folder_has_texts(source)
        return os.path.isfile(source) and is_text_table(source) and _has_texts(source)

    def scan(
        self,
        source: str | os.PathLike[str],
        *,
        task: Task | None = None,
        splits: bool = True,
        known_classes: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Return the texts of a table or a folder; raises as `scan_texts`."""
        columns = self.chosen(options, self.scan_options)
        return scan_texts(source, task=task, splits=splits, known_classes=known_classes, **columns)

    def load_backbone(self, request: Request, *, outputs: Sequence[str]) -> TextBackbone:
        """Return the encoder; raises as `load_text_backbone`, and `InputError` for settings of images."""
        from featcache.backbone.text import load_text_backbone

        if request.backbone is None:
            raise InputError(
                "texts need an encoder: name a directory of transformers or sentence-transformers, or a hub's "
                "OWNER/MODEL, with --backbone"
            )
        for name in ("model_kwargs", "mean", "std", "decoder", "dct_scaling"):
            if getattr(request, name) is not None:
                raise InputError(f"--{name.replace('_', '-')} belongs to images, got it for texts: leave it out")
        if request.views not in (None, 1):
            raise InputError(f"texts have one view, got views={request.views!r}: leave it out")
        settings = self.chosen(request.input_options, self.recipe_options)
        return load_text_backbone(request.backbone, weights=request.weights, outputs=outputs, **settings)

    def open_extractor(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        """Return engine, tokenizer and Recipe of an encoder; raises as `load_backbone` and `open_text_engine`."""
        from featcache.engines.text import open_text_engine

        backbone = self.load_backbone(request, outputs=request.outputs or ("features",))
        engine = open_text_engine(
            backbone,
            engine=request.engine or (adopt.engine if adopt else "auto"),
            precision=request.precision or (adopt.precision if adopt else "auto"),
        )
        recipe = Recipe(
            model=backbone.model_name,
            model_kwargs={},
            model_digest=None,
            weights_sha256=backbone.weights_sha256,
            outputs=backbone.outputs,
            preprocessing=backbone.preprocessing,
            decoder="utf-8",
            dct_scaling=False,
            orientation="none",
            views=1,
            view_seed=0,
            engine=engine.name,
            engine_version=engine.version,
            precision=engine.precision,
            dtype=request.dtype or (adopt.dtype if adopt else "float16"),  # type: ignore[arg-type]
            weights=backbone.weights_label,
        )
        return TextExtractor(engine, recipe, backbone.tokenizer)

    def extractor_of_module(self, backbone: Any, recipe: Recipe) -> Extractor:
        """Return the encoder in the recipe's engine, in floats where it says so."""
        from featcache.engines.text import open_text_engine

        engine = open_text_engine(backbone, engine=recipe.engine, precision=precision_here(recipe))
        return TextExtractor(engine, recipe, backbone.tokenizer)

    def extractor_of_graph(self, path: Path, recipe: Recipe, deployed: DeployedInput) -> Extractor:
        """Return the file, of one input of ids with -1 behind, in ONNX Runtime."""
        from featcache.backbone.text.tokenizer import TextTokenizer
        from featcache.engines.text._onnxruntime import open_padded_graph
        from featcache.extract.inputs.deployed_texts import NO_TOKEN, TOKENIZER_FILE

        preprocessing = cast("TextPreprocessing", recipe.preprocessing)
        engine = open_padded_graph(path, max_length=preprocessing.max_length, padding=NO_TOKEN)
        tokenizer = TextTokenizer(deployed.assets[TOKENIZER_FILE], preprocessing)
        return TextExtractor(engine, computed_by(recipe, engine), tokenizer)

    def environment(self, request: Request, recipe: Recipe) -> dict[str, Any]:
        """Return the versions of what computes, and the stamps of the files of an encoder's directory."""
        packages = ("transformers", "tokenizers", find_engine(recipe.engine).package)
        found: dict[str, Any] = {name: importlib.metadata.version(name) for name in packages}
        folder = Path(request.backbone or "")
        if folder.is_dir():
            files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".safetensors")]
            found["files"] = {path.relative_to(folder).as_posix(): file_stamp(path) for path in files}
        return found

    def loader(self, extractors: Sequence[Extractor], *, burst: int) -> Loader:
        """Return a loader that puts texts of about one length together."""
        return TextLoader([cast("TextExtractor", extractor) for extractor in extractors])

    def named(
        self, inputs: str | os.PathLike[str], options: Mapping[str, Any] | None = None
    ) -> list[tuple[Source, str]]:
        """Return the text itself, or each of a table's rows, a folder's files, or a ``.txt`` file's lines.

        Raises `InputError` for a file without a line, and as `scan_texts`.
        """
        text = os.fspath(inputs)
        if os.path.isfile(text) and text.lower().endswith(".txt"):
            with open(text, "rb") as file:
                lines = decode_utf8(file.read(), text).splitlines()
            found = [(line, f"{text}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
            if not found:
                raise InputError(f"{text!r} must hold a text in some line, it holds none")
            return [(partial(bytes, line.encode()), name) for line, name in found]
        is_place = os.path.exists(text) or (is_text_table(text) and " " not in text)
        if is_place or (is_url(text) and is_text_table(text)):
            return super().named(text, options)
        return [(partial(bytes, text.encode(errors="replace")), text)]

    def deployed(self, preprocessing: InputPreprocessing, read: Callable[[str], bytes]) -> DeployedInput:
        """Return the tokenizer that travels with a model."""
        from featcache.extract.inputs.deployed_texts import TOKENIZER_FILE, DeployedTexts

        return DeployedTexts(cast("TextPreprocessing", preprocessing), read(TOKENIZER_FILE))

    def show(self, data: bytes, *, side: int) -> tuple[str, bytes]:
        """Return the text."""
        return "text/plain; charset=utf-8", read_text(data).encode()


class TextLoader(Loader):
    """Texts that wait, each among those of its bucket, until there are as many as a batch holds."""

    room = _ROOM

    def __init__(self, extractors: Sequence[TextExtractor]) -> None:
        self._waiting = [_Waiting(number, extractor) for number, extractor in enumerate(extractors)]

    def load(self, data: bytes, digest: bytes, numbers: Sequence[int], clock: StageClock) -> None:
        """Split the text into tokens for each extractor; `SampleError` for what is no UTF-8, or empty."""
        text = read_text(data)
        for number in numbers:
            waiting = self._waiting[number]
            waiting.add(waiting.extractor.tokenizer.encode([text])[0], digest)
        clock.stop("decode")

    def ready(self) -> Iterator[ComputedRows]:
        """Compute the batches that are full."""
        yield from (rows for waiting in self._waiting for rows in waiting.compute(full=True))

    def rest(self) -> Iterator[ComputedRows]:
        """Compute the batches that are partly full."""
        yield from (rows for waiting in self._waiting for rows in waiting.compute(full=False))


class _Waiting:
    """The texts of one thread for one extractor, by their bucket."""

    def __init__(self, number: int, extractor: TextExtractor) -> None:
        self.number, self.extractor = number, extractor
        self._buckets: Buckets = cast("TextEngine", extractor.engine).buckets
        self._texts: dict[int, list[tuple[TokenIds, bytes]]] = {}
        self._full: list[int] = []

    def add(self, ids: TokenIds, digest: bytes) -> None:
        place = self._buckets.place(len(ids))
        texts = self._texts.setdefault(place, [])
        texts.append((ids, digest))
        if len(texts) == self._buckets.all[place].batch_size:
            self._full.append(place)

    def compute(self, *, full: bool) -> Iterator[ComputedRows]:
        places, self._full = (self._full if full else sorted(self._texts)), []
        for place in places:
            texts = self._texts.pop(place)
            values = cast("TextEngine", self.extractor.engine).run([ids for ids, _ in texts])
            keys = key_rows([digest for _, digest in texts])
            yield ComputedRows(self.number, keys, columns_of(self.extractor, values))


def _has_texts(path: str) -> bool:
    """Return whether a table has a column that is called as one of texts, and none of paths or images."""
    lower = path.lower()
    if lower.endswith((".jsonl", ".ndjson")):
        return True
    try:
        names = _parquet_names(path) if lower.endswith(".parquet") else _header_names(path)
    except (InputError, FormatError, MissingError, SampleError, StorageError):
        return False  # whoever reads it as images says what is wrong
    return "path" not in names and any(name in names for name in TEXT_NAMES)


def _header_names(path: str) -> list[str]:
    file = open_parts(path)
    head = file.read_part(0, min(file.size, _HEAD)).decode("utf-8-sig", "replace")
    line = next((line for line in io.StringIO(head) if line.strip()), "")
    separator = max(",;\t|", key=line.count)
    return [name.strip().casefold() for name in next(csv.reader([line], delimiter=separator), [])]


def _parquet_names(path: str) -> list[str]:
    from featcache.system.sources.columns import byte_columns, open_parquet

    schema = open_parquet(open_parts(path)).schema_arrow
    return [] if byte_columns(schema) else [name.strip().casefold() for name in schema.names]


def _folder_has_texts(folder: str) -> bool:
    """Return whether a folder holds texts and, as far down as that takes to say, no image."""
    tables = tables_in(folder)
    found = False
    for _, _, files in os.walk(folder):
        for name in files:
            if has_image_extension(name) or (is_container(name) and not is_text_table(name)):
                return False
            found = found or name.rpartition(".")[2].lower() in TEXT_EXTENSIONS
    return _has_texts(os.path.join(folder, tables[0])) if tables else found
