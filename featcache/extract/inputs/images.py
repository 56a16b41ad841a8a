"""Images as an input kind: timm's networks, one decode for all that see an image alike, views."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from featcache.backbone.embedded import EMBEDDED_BACKBONE
from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.place import WHAT_IMAGES_MAY_BE, images_place
from featcache.datasets.scan import scan
from featcache.engines.registry import find_engine
from featcache.errors import InputError, MissingError
from featcache.extract.collection import ComputedRows, StageClock
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.interface import Extractor, Input, Loader, columns_of, computed_by, key_rows
from featcache.extract.request import Request, file_stamp, first_given
from featcache.images.load import decode, resize_crop, upright_size
from featcache.images.read import ImageFile
from featcache.images.view_spec import ViewSpec
from featcache.images.views import draw_view
from featcache.recipe import InputPreprocessing, Preprocessing, Recipe
from featcache.system.sources.batches import Source
from featcache.system.sources.opening import split_member

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone
    from featcache.engines import CompiledNetwork, Engine

Columns = Callable[[Extractor, npt.NDArray[np.uint8], int], dict[str, npt.NDArray[Any]]]


class ImageInput(Input):
    """Photos and pictures of every format that `featcache.images.load` reads."""

    name, noun = "image", "image"
    default_backbone = EMBEDDED_BACKBONE
    decodes_apart = True

    def recognizes(self, source: str) -> bool:
        """Images are what no other kind recognizes."""
        return True

    def scan(
        self,
        source: str | os.PathLike[str],
        *,
        task: Task | None = None,
        splits: bool = True,
        known_classes: Collection[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Return the images of a folder, a CSV file or files of many images."""
        return scan(source, task=task, splits=splits, known_classes=known_classes)

    def load_backbone(self, request: Request, *, outputs: Sequence[str]) -> Backbone:
        """Return timm's network; raises as `featcache.load_backbone`."""
        from featcache.backbone.load import load_backbone

        if request.backbone is None:
            raise InputError("a backbone must be named: --backbone NAME")
        return load_backbone(
            request.backbone,
            weights=request.weights,
            model_kwargs=request.model_kwargs,
            mean=request.mean,
            std=request.std,
            outputs=outputs,
        )

    def open_extractor(self, request: Request, *, adopt: Recipe | None) -> Extractor:
        """Return the engine and Recipe of a timm backbone; raises as `load_backbone` and `open_engine`."""
        from featcache.engines import open_engine

        backbone = self.load_backbone(request, outputs=request.outputs or ("features",))
        engine = open_engine(
            backbone,
            engine=request.engine or (adopt.engine if adopt else "auto"),
            precision=request.precision or (adopt.precision if adopt else "auto"),
        )
        recipe = Recipe(
            model=backbone.model_name,
            model_kwargs=backbone.model_kwargs,
            model_digest=None,
            weights_sha256=backbone.weights_sha256,
            outputs=backbone.outputs,
            preprocessing=backbone.preprocessing,
            decoder=request.decoder or (adopt.decoder if adopt else "fast"),  # type: ignore[arg-type]
            dct_scaling=first_given(request.dct_scaling, adopt and adopt.dct_scaling, False),
            orientation="exif",
            views=first_given(request.views, adopt and adopt.views, 1),
            view_seed=first_given(request.view_seed, adopt and adopt.view_seed, 0),
            engine=engine.name,
            engine_version=engine.version,
            precision=engine.precision,
            dtype=request.dtype or (adopt.dtype if adopt else "float16"),  # type: ignore[arg-type]
            weights=backbone.weights_label,
        )
        if recipe.dct_scaling and adopt is None:
            from featcache.engines.precision import reference_rows
            from featcache.extract.dct_scaling import require_dct_scaling

            reference = partial(reference_rows, backbone)
            require_dct_scaling(engine, reference, recipe.image_preprocessing, decoder=recipe.decoder)
        return Extractor(engine, recipe)

    def extractor_of_module(self, backbone: Any, recipe: Recipe) -> Extractor:
        """Return the module in the engine that the recipe names, not kept; the recipe stays as it is."""
        from featcache.engines import open_engine

        return Extractor(open_engine(backbone, engine=recipe.engine, cached=False), recipe)

    def extractor_of_graph(self, path: Path, recipe: Recipe, deployed: DeployedInput) -> Extractor:
        """Return the file in ONNX Runtime."""
        from featcache.engines import open_engine

        engine = open_engine(path, engine="onnxruntime", precision="int8")
        return Extractor(engine, computed_by(recipe, engine))

    def open_kept(self, recipe: Recipe) -> CompiledNetwork | None:
        """Return the engine as it was compiled before: that imports neither torch nor timm."""
        from featcache.engines import open_cached_engine

        return open_cached_engine(recipe)

    def environment(self, request: Request, recipe: Recipe) -> dict[str, Any]:
        """Return timm's version and the engine's, and the weights file's stamp."""
        package = find_engine(recipe.engine).package
        found: dict[str, Any] = {name: importlib.metadata.version(name) for name in ("timm", package)}
        weights = request.to_json().get("weights")
        if weights is not None and not weights.startswith("random:"):
            found["weights_file"] = file_stamp(weights)
        return found

    def loader(self, extractors: Sequence[Extractor], *, burst: int) -> Loader:
        """Return a loader that decodes each image once for all extractors."""
        return ImageLoader(extractors, burst=burst)

    def prepared_bytes(self, recipes: Sequence[Recipe]) -> int:
        """Return the bytes of the pixels of all views, once for recipes that see an image alike."""
        specs = {ViewSpec.of(recipe) for recipe in recipes}
        return sum(len(spec.views) * spec.preprocessing.height * spec.preprocessing.width * 3 for spec in specs)

    def named(
        self, inputs: str | os.PathLike[str], options: Mapping[str, Any] | None = None
    ) -> list[tuple[Source, str]]:
        """Return a reader of an image, or of each in a folder, table, tar, ….

        Raises `MissingError` for what is not there, `InputError` for a file of another kind.
        """
        path = os.fspath(inputs)
        if (member := split_member(path)) is not None and not os.path.isdir(member.container):
            return [(ImageFile(path), printable(path))]
        try:
            place = images_place(path)
        except MissingError:
            raise MissingError(f"images must exist; {path!r} does not") from None
        if place.kind not in ("image", "other"):
            return super().named(path)  # every image counts here, whichever split it may be in
        if place.kind == "other" and os.path.splitext(path)[1]:  # one without any, as uploads often are, is looked into
            raise InputError(f"images must be an image file, {WHAT_IMAGES_MAY_BE}, got {path!r}")
        return [(ImageFile(place.source if place.is_remote else path), printable(path))]

    def deployed(self, preprocessing: InputPreprocessing, read: Callable[[str], bytes]) -> DeployedInput:
        """Return the reference preprocessing, Pillow's."""
        from featcache.extract.inputs.deployed_images import DeployedImages

        return DeployedImages(cast("Preprocessing", preprocessing))

    def show(self, data: bytes, *, side: int) -> tuple[str, bytes]:
        """Return a JPEG of the image, upright; raises `ImageError` as `featcache.images.load.decode`."""
        from featcache.images.thumbnail import thumbnail

        return "image/jpeg", thumbnail(data, side=side)


def image_columns(extractor: Extractor, pixels: npt.NDArray[np.uint8], count: int) -> dict[str, npt.NDArray[Any]]:
    """Return, by the name of each column, the rows of `count` images, all views of one after another in `pixels`.

    `pixels` may be longer, so that the last run of the engine need not be padded. Raises as `columns_of`.
    """
    engine = cast("Engine", extractor.engine)
    rows = count * extractor.recipe.views
    runs = [engine.run(pixels[start : start + engine.batch_size]) for start in range(0, rows, engine.batch_size)]
    values = []
    for parts in zip(*runs, strict=True):
        values.append((np.concatenate(parts) if len(parts) > 1 else parts[0])[:rows])
    return columns_of(extractor, values)


class ImageLoader(Loader):
    """Images that are decoded once for all extractors that see them alike.

    Each worker thread carries its own images the whole way: it decodes and resizes into the slots of its own batch,
    then runs the network. `columns`: what becomes of a batch's pixels, by default rows.
    """

    def __init__(self, extractors: Sequence[Extractor], *, burst: int, columns: Columns = image_columns) -> None:
        self._batches = [_Batch(number, extractor, columns, burst=burst) for number, extractor in enumerate(extractors)]
        self.room = min(batch.free for batch in self._batches)

    def load(self, data: bytes, digest: bytes, numbers: Sequence[int], clock: StageClock) -> None:
        """Decode an image into the next slot of every batch that wants it; raises `ImageError`."""
        batches = [self._batches[number] for number in numbers]
        slots = {batch.number: batch.slot() for batch in batches}
        shared: dict[ViewSpec, list[_Batch]] = {}
        for batch in batches:
            shared.setdefault(batch.spec, []).append(batch)
        todo = [(spec, place, view) for spec in shared for place, view in enumerate(spec.views)]
        for decoder, min_side in dict.fromkeys((spec.decoder, spec.min_side(view)) for spec, _, view in todo):
            pixels = decode(data, decoder=decoder, min_side=min_side, reuse=True)
            full_size = None if min_side is None else upright_size(data)
            clock.stop("decode")
            for spec, place, view in todo:
                if (spec.decoder, spec.min_side(view)) == (decoder, min_side):
                    drawn = draw_view(spec.view_seed, digest, view)
                    out = slots[shared[spec][0].number][place]
                    resize_crop(pixels, spec.preprocessing, decoder=decoder, view=drawn, full_size=full_size, out=out)
            clock.stop("resize")
        for users in shared.values():
            for batch in users:
                if batch is not users[0]:
                    slots[batch.number][...] = slots[users[0].number]
                batch.push(digest)

    def ready(self) -> Iterator[ComputedRows]:
        """Compute the batches that are full."""
        yield from (batch.compute() for batch in self._batches if not batch.free)
        self.room = min(batch.free for batch in self._batches)

    def rest(self) -> Iterator[ComputedRows]:
        """Compute the batches that are partly full."""
        yield from (batch.compute() for batch in self._batches if batch.count)


class _Batch:
    """One worker's images for one extractor: as many as fill some whole runs of the engine with all their views.

    Runs follow one another in bursts: the network's weights and code are then in the processor's caches for all of them
    but the first, where a decode between two runs would drive them out.
    """

    def __init__(self, number: int, extractor: Extractor, columns: Columns, *, burst: int) -> None:
        self.number, self._extractor, self._columns = number, extractor, columns
        self.spec = ViewSpec.of(extractor.recipe)
        size, views = self.spec.preprocessing, len(self.spec.views)
        batch_size = cast("Engine", extractor.engine).batch_size
        whole = batch_size // math.gcd(batch_size, views)
        self.capacity = -(-burst // (whole * views)) * whole
        self._pixels = np.zeros((self.capacity * views, size.height, size.width, 3), dtype=np.uint8)
        self._keys: list[bytes] = []

    @property
    def count(self) -> int:
        """How many images are in here."""
        return len(self._keys)

    @property
    def free(self) -> int:
        """How many more images fit."""
        return self.capacity - len(self._keys)

    def slot(self) -> npt.NDArray[np.uint8]:
        """Return the pixels (views, height, width, 3) of the next image, to be written to."""
        views = len(self.spec.views)
        first = len(self._keys) * views
        return self._pixels[first : first + views]

    def push(self, key: bytes) -> None:
        """Count the image in `slot` in."""
        self._keys.append(key)

    def compute(self) -> ComputedRows:
        """Return the rows of the images in here, which are forgotten."""
        # The last run may be partly filled: the slots behind hold older images, whose rows are thrown away.
        columns = self._columns(self._extractor, self._pixels, self.count)
        keys = key_rows(self._keys)
        self._keys.clear()
        return ComputedRows(self.number, keys, columns)
