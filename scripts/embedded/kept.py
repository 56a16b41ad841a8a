"""Lessons from answers that were kept: the way of a machine without a GPU, where a teacher answers each view once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from embedded.loop import Lesson, Settings, draw_of
from embedded.photos import Photos
from embedded.processes import part
from embedded.targets import Scale, as_tensor
from embedded.views import cut


class KeptLessons:
    """Each photo is seen once a pass, in one of the views that the teachers answered, as it is or mirrored.

    `answered`: of each teacher (views, photos, features); `scales`: from its features to targets; `head`: on these.
    """

    def __init__(
        self, photos: Photos, boxes: np.ndarray, answered: Sequence[np.ndarray], scales: Sequence[Scale],
        head: nn.Linear,
    ) -> None:  # fmt: skip
        self.photos, self.boxes, self.answered, self.scales, self.head = photos, boxes, answered, scales, head
        self.pixels = torch.from_numpy(photos.pixels)
        self.labels = torch.from_numpy(photos.labels)
        self.count = len(photos)
        self.widths = [one.matrix.shape[1] for one in scales]
        self.classes = head.out_features

    def lesson(self, step: int, settings: Settings, side: int) -> Lesson:
        """Return the batch of a step: see `Lessons`."""
        draw = draw_of(step, len(self.photos), settings)
        views = part(torch.randint(len(self.boxes), (settings.batch,), generator=draw.generator))
        where = (views.numpy(), draw.chosen.numpy())
        images = cut(self.pixels[draw.chosen], torch.from_numpy(self.boxes[where]), side, mirrored=draw.mirrored)
        features = tuple(
            scale(as_tensor(table[where])) for scale, table in zip(self.scales, self.answered, strict=True)
        )
        with torch.no_grad():
            logits = self.head(torch.cat(features, 1))
        return Lesson(images, features, logits, self.labels[draw.chosen])
