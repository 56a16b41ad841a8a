"""Lessons from answers that were kept: the way of a machine without a GPU, where a teacher answers each view once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from embedded.loop import Lesson, Settings
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
        self.widths = [one.matrix.shape[1] for one in scales]
        self.classes = head.out_features
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    def _drawn_order(self, number: int, seed: int) -> Tensor:
        return torch.randperm(len(self.photos), generator=torch.Generator().manual_seed(seed * 7_919 + number))

    def lesson(self, step: int, settings: Settings, side: int) -> Lesson:
        """Return the batch of a step: see `Lessons`."""
        in_pass = len(self.photos) // settings.batch
        number, place = divmod(step, in_pass)
        chosen = self._order(number, settings.seed)[place * settings.batch : (place + 1) * settings.batch]
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        views = part(torch.randint(len(self.boxes), (settings.batch,), generator=draw))
        mirrored = part(torch.rand(settings.batch, generator=draw) < 0.5)
        chosen = part(chosen)
        where = (views.numpy(), chosen.numpy())
        images = cut(self.pixels[chosen], torch.from_numpy(self.boxes[where]), side, mirrored=mirrored)
        features = tuple(
            scale(as_tensor(table[where])) for scale, table in zip(self.scales, self.answered, strict=True)
        )
        with torch.no_grad():
            logits = self.head(torch.cat(features, 1))
        return Lesson(images, features, logits, self.labels[chosen])
