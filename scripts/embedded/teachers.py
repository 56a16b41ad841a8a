"""What the teachers see in every view: answered once and kept, or on the spot where a GPU makes that cheap."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from embedded.photos import Photos
from embedded.views import cut
from featcache.backbone.timm_import import import_timm

BATCH = 64


@dataclass(frozen=True)
class Teacher:
    """A network with ImageNet weights of ../shared/weights, both of which see pixels in [-1, 1].

    `side`: of the views it answers, larger than the student's: a network trained on large photos sees little in small
    ones (Touvron et al. 2019, arXiv 1906.06423).
    """

    network: str
    weights: str
    classes: int
    side: int

    def build(self, folder: Path) -> nn.Module:
        """Return it in evaluation mode: images (n, 3, side, side) in, pooled features (n, width) out."""
        network: nn.Module = import_timm().create_model(self.network, num_classes=self.classes, pad_type="same")
        network.load_state_dict(
            {name: tensor.float() for name, tensor in load_file(folder / f"{self.weights}.safetensors").items()}
        )
        network.reset_classifier(0)
        return network.eval()


TEACHERS = {
    "mobilenetv2_100": Teacher("mobilenetv2_100", "mobilenetv2_100.tf_float_headless", 0, 160),
    "mobilenetv2_100_at_64": Teacher("mobilenetv2_100", "mobilenetv2_100.tf_float_headless", 0, 64),
    "mobilenet_edgetpu_100": Teacher("mobilenet_edgetpu_100", "mobilenet_edgetpu_100.mlperf_qat", 1000, 160),
}


def answers(
    teacher: Teacher, photos: Photos, boxes: np.ndarray, weights: Path, kept: Path, say: Callable[[str], None]
) -> np.ndarray:
    """Return (views, photos, features) float16 features of every view, kept in the file `kept`; killed, it goes on."""
    views, count = boxes.shape[:2]
    network = teacher.build(weights)
    with torch.inference_mode():
        width = network(torch.zeros(1, 3, teacher.side, teacher.side)).shape[1]
    done = kept.with_suffix(".done")
    begun = int(done.read_text()) if done.exists() and kept.exists() else 0
    mode = "r+" if begun else "w+"
    kept.parent.mkdir(parents=True, exist_ok=True)
    table = np.lib.format.open_memmap(kept, mode=mode, dtype=np.float16, shape=(views, count, width))
    if begun < views:
        answer = _fast(network, teacher.side)
        for view in range(begun, views):
            for start in range(0, count, BATCH):
                part = slice(start, start + BATCH)
                seen = cut(torch.from_numpy(photos.pixels[part]), torch.from_numpy(boxes[view, part]), teacher.side)
                table[view, part] = answer(seen)
                if start % (BATCH * 100) == 0:
                    say(f"{kept.stem}: view {view + 1} of {views}, {start} of {count}")
            table.flush()
            done.write_text(str(view + 1))
    return np.load(kept, mmap_mode="r")


def _fast(network: nn.Module, side: int) -> Callable[[torch.Tensor], np.ndarray]:
    """Return the network as a function of a batch, through OpenVINO where it is installed: 2 to 3 times torch."""
    if importlib.util.find_spec("openvino") is None:
        with_torch = network.to(memory_format=torch.channels_last)

        def run(images: torch.Tensor) -> np.ndarray:
            with torch.inference_mode():
                return with_torch(images).numpy()

        return run
    import openvino

    model = openvino.convert_model(network, example_input=torch.zeros(2, 3, side, side))
    model.reshape([-1, 3, side, side])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images.contiguous().numpy())[0]
