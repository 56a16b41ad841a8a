"""Lessons answered on the spot: the way of a GPU, where the teachers see every crop that the student sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from embedded.loop import Lesson, Settings, draw_of
from embedded.photos import Photos
from embedded.processes import part
from embedded.targets import Scale, soft_head
from embedded.teachers import Teacher
from embedded.views import crop_boxes, cut


class LiveLessons:
    """Each photo once a pass, in a crop never seen before, at each teacher's own side for the teacher.

    `make`: from features of the whole photos to their scale. All on `device`, the networks on a GPU in bf16.
    """

    def __init__(
        self, photos: Photos, teachers: Sequence[Teacher], weights: Sequence[nn.Module],
        make: Callable[[Tensor], Scale], device: str,
    ) -> None:  # fmt: skip
        self.device, self.sides = device, [one.side for one in teachers]
        self.pixels = torch.from_numpy(photos.pixels).to(device)
        self.labels = torch.from_numpy(photos.labels).to(device)
        self.networks = [one.to(device, memory_format=torch.channels_last) for one in weights]
        plain = [self._whole(number) for number in range(len(teachers))]
        self.scales = [make(one) for one in plain]
        seen = [scale(one).cpu() for scale, one in zip(self.scales, plain, strict=True)]
        self.head = soft_head(seen, self.labels.cpu(), len(photos.classes)).to(device)
        self.count = len(photos)
        self.widths = [one.matrix.shape[1] for one in self.scales]
        self.classes = self.head.out_features

    @torch.inference_mode()
    def _answer(self, number: int, pixels: Tensor, boxes: Tensor, mirrored: Tensor | None = None) -> Tensor:
        images = cut(pixels, boxes, self.sides[number], mirrored=mirrored)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            features: Tensor = self.networks[number](images.contiguous(memory_format=torch.channels_last))
        return features.float()

    def _whole(self, number: int) -> Tensor:
        box = torch.tensor([[0.5, 0.5, 1.0, 1.0]], device=self.device)
        return torch.cat([self._answer(number, part, box.expand(len(part), 4)) for part in self.pixels.split(512)])

    def lesson(self, step: int, settings: Settings, side: int) -> Lesson:
        """Return the batch of a step: see `Lessons`."""
        draw = draw_of(step, len(self.pixels), settings)
        chosen, mirrored = draw.chosen.to(self.device), draw.mirrored.to(self.device)
        drawn = crop_boxes(settings.batch, 2, settings.seed * 1_000_003 + step)[1]
        boxes = part(torch.from_numpy(np.ascontiguousarray(drawn))).to(self.device)
        pixels = self.pixels[chosen]
        features = tuple(
            scale(self._answer(teacher, pixels, boxes, mirrored)) for teacher, scale in enumerate(self.scales)
        )
        with torch.no_grad():
            logits = self.head(torch.cat(features, 1))
        return Lesson(cut(pixels, boxes, side, mirrored=mirrored), features, logits, self.labels[chosen])
