"""Images before a deployed network: decoded by Pillow, which every device can repeat."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from featcache.extract.inputs.deployed import DeployedInput
from featcache.images.load import decode, load_image
from featcache.recipe import Decoder, Preprocessing, preprocessing_to_json


class DeployedImages(DeployedInput):
    """RGB pixels (n, height, width, 3) uint8; normalisation is inside the network."""

    tensor, noun, pipeline, suffix = "image", "image", "image-classification", ".jpg"
    usual_size = 224 * 224 * 3

    recipe_changes: ClassVar[Mapping[str, Any]] = {"decoder": "pillow", "dct_scaling": False}

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = self._size = preprocessing

    def prepare(self, data: bytes, *, decoder: Decoder | None = None) -> npt.NDArray[np.uint8]:
        """Return pixels (height, width, 3)."""
        return load_image(data, self._size, decoder=decoder or "pillow")

    def example(self) -> npt.NDArray[np.uint8]:
        """Return noise."""
        shape = (1, self._size.height, self._size.width, 3)
        return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)

    def synthetic(self, count: int) -> tuple[bytes, ...]:
        """Return JPEGs of smooth random colours."""
        from PIL import Image

        generator = np.random.default_rng(0)
        images = []
        for _ in range(count):
            coarse = generator.integers(0, 256, size=(7, 9, 3), dtype=np.uint8)
            size = (self._size.width * 9 // 7, self._size.height * 8 // 7)
            images.append(_encoded(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)))
        return tuple(images)

    def golden(self, data: bytes) -> bytes:
        """Return `data` if it is a JPEG, else its picture, decoded as everywhere, as one without subsampling."""
        if data.startswith(b"\xff\xd8\xff"):
            return data
        from PIL import Image

        return _encoded(Image.fromarray(decode(data, decoder="pillow")))

    def tensors(self) -> dict[str, Any]:
        """Return the reference form: uint8 (N, H, W, 3)."""
        shape = ["N", self._size.height, self._size.width, 3]
        return {self.tensor: {"dtype": "uint8", "layout": "NHWC", "color": "RGB", "shape": shape}}

    def document(self) -> dict[str, Any]:
        """Return decoder, orientation, normalisation and the steps."""
        size = self._size
        resize = (
            f"scale the short side to {size.resize} pixels"
            if size.crop_mode == "center"
            else f"scale to {size.width} x {size.height} pixels, whatever the aspect"
        )
        steps = [
            "decode to 8-bit RGB (grey is repeated, transparency is laid over white, the highest 8 of 16 bits are kept;"
            " of 16-bit grey without a value above 4095, the highest 8 of 12)",
            "turn and mirror as the EXIF orientation says",
            f"{resize} ({size.interpolation}, antialiased, as Pillow's resize)",
        ]
        if size.crop_mode == "center":
            steps.append(f"cut the middle {size.width} x {size.height} pixels")
        steps.append("pass the bytes 0 to 255 as they are: mean and std are applied inside the model")
        return {
            "preprocessing": preprocessing_to_json(size),
            "decoder": "pillow",
            "orientation": "exif",
            "normalisation": "inside the model",
            "steps": steps,
        }

    def described(self) -> str:
        """Return the size."""
        size = f"{self._size.width} x {self._size.height}"
        return f"RGB, {size} pixels, made as `preprocess.json` says; mean and std are in the model"


def _encoded(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
