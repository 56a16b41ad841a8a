"""`MergedTextModel`: token ids in, class probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from featcache.backbone.text.encoder import TextBackbone
from featcache.extract.inputs.deployed_texts import NO_TOKEN, TOKENIZER_FILE
from featcache.model.merged import MergedModel


class MergedTextModel(MergedModel):
    """A `MergedModel` of a `TextBackbone`: it takes ids (N, length) int64 with -1 behind shorter texts."""

    def _register_normalisation(self) -> None:
        """Nothing is normalised: ids are numbers of rows."""

    @property
    def assets(self) -> Mapping[str, bytes]:
        """The tokenizer."""
        return {TOKENIZER_FILE: self._encoder.tokenizer_json}

    @property
    def _encoder(self) -> TextBackbone:
        return cast("TextBackbone", self.backbone)

    def halves_apart(self, image: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return `features`, as the encoder gives them of ids and a mask that are made of lengths."""
        lengths = (image != NO_TOKEN).sum(dim=1)
        mask = (torch.arange(image.shape[1])[None] < lengths[:, None]).long()
        outputs = self.backbone(image.clamp(min=0) * mask + self._encoder.pad_id * (1 - mask), mask)
        return np.concatenate([output.flatten(1).numpy() for output in outputs], axis=1)

    def example(self, count: int) -> torch.Tensor:
        """Return texts of seven tokens, every other one of three: no length in them may become a constant."""
        config: Any = self._encoder.network.config
        ids = torch.arange(7, dtype=torch.int64).repeat(count, 1) % int(config.vocab_size)
        ids[1::2, 3:] = NO_TOKEN
        return ids

    def _outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        present = image != NO_TOKEN
        ids = torch.where(present, image, torch.full_like(image, self._encoder.pad_id))
        outputs: tuple[torch.Tensor, ...] = self.backbone(ids, present.to(torch.int64))
        return outputs
