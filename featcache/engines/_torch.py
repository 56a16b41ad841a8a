"""torch: the engine of CUDA devices, and the reference on a CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from featcache.backbone import Backbone, ImageNetwork
from featcache.engines import Engine
from featcache.engines.precision import choose_precision
from featcache.recipe import Precision


class TorchEngine(Engine):
    """The module itself, channels last; bf16 where the device computes in it."""

    name = "torch"

    def __init__(self, backbone: Backbone, *, precision: str, batch_size: int) -> None:
        self.version = torch.__version__.partition(".")[0]
        self.batch_size = batch_size
        self.columns = tuple(zip(backbone.outputs, backbone.output_shapes, strict=True))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = ImageNetwork(backbone).to(self._device, memory_format=torch.channels_last)
        size = backbone.preprocessing
        has_bf16 = self._device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.precision, _ = choose_precision(
            precision,
            available=("fp32", "bf16") if has_bf16 or self._device.type == "cpu" else ("fp32",),
            open_network=lambda chosen: chosen,
            run=self._run,
            shape=(batch_size, size.height, size.width, 3),
            engine=f"torch on {self._device.type}",
        )

    def run(self, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        """Return the outputs of one full batch."""
        return self._run(self.precision, batch)

    def _run(self, precision: Precision, batch: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        images = torch.from_numpy(batch).to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = self._network(images)
        return tuple(output.float().cpu().numpy() for output in outputs)

    def close(self) -> None:
        """Release the network."""
        del self._network
