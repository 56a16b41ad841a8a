"""Images as an input kind: timm's networks, one decode for all that see an image alike, views."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featcache.backbone.embedded import EMBEDDED_BACKBONE, embedded_weights
from featcache.datasets.listing import Listing, Task, printable
from featcache.datasets.place import WHAT_IMAGES_MAY_BE, images_place
from featcache.datasets.scan import scan
from featcache.engines.registry import find_engine
from featcache.errors import InputError, MissingError
from featcache.extract.inputs.deployed import DeployedInput
from featcache.extract.inputs.interface import Extractor, Input, Loader, computed_by, precision_here
from featcache.extract.request import Request, file_stamp, first_given
from featcache.images.read import ImageFile
from featcache.recipe import InputPreprocessing, Preprocessing, Recipe
from featcache.system.sources.batches import Source
from featcache.system.sources.opening import split_member

if TYPE_CHECKING:
    from featcache.backbone.backbone import Backbone
    from featcache.engines import CompiledNetwork


class ImageInput(Input):
    """Photos and pictures of every format that `featcache.images.load` reads."""

    name, noun = "image", "image"
    default_backbone = EMBEDDED_BACKBONE
    shown = "picture"
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
        """Return the module in the recipe's engine, in floats where it says so, not kept; the recipe stays."""
        from featcache.engines import open_engine

        engine = open_engine(backbone, engine=recipe.engine, precision=precision_here(recipe), cached=False)
        return Extractor(engine, recipe)

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
        if weights is None and request.backbone == EMBEDDED_BACKBONE:
            weights = str(embedded_weights())  # which another release of this package may have replaced
        if weights is not None and not weights.startswith("random:"):
            found["weights_file"] = file_stamp(weights)
        return found

    def loader(self, extractors: Sequence[Extractor], *, burst: int) -> Loader:
        """Return a loader that decodes each image once for all extractors."""
        from featcache.extract.inputs.image_loader import ImageLoader

        return ImageLoader(extractors, burst=burst)

    def prepared_bytes(self, recipes: Sequence[Recipe]) -> int:
        """Return the bytes of the pixels of all views, once for recipes that see an image alike."""
        from featcache.images.view_spec import ViewSpec

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
