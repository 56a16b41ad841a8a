"""The texts by which a precision is judged: a few lengths and scripts, the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featcache.engines.interface import Features
from featcache.engines.text.interface import TokenIds

if TYPE_CHECKING:
    from featcache.backbone.text.encoder import TextBackbone

CHECK_TEXTS = (
    "Yes.",
    "My card has not arrived yet, what can I do?",
    "The committee met on 14 March 2019 and approved a budget of 2,350,000 dollars for the new library.",
    "Worst film I have seen in years: flat jokes, no plot, and the ending makes no sense at all!!!",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "Die Straßenbahn fährt heute wegen Bauarbeiten nicht zum Hauptbahnhof.",
    "Где находится ближайшая аптека?",
    "今天的天气很好，我们去公园散步吧。",
    "كيف يمكنني استعادة كلمة المرور؟",
    "Breathing in plants takes place in the mitochondria of every living cell. " * 6,
)


def check_ids(backbone: TextBackbone) -> list[TokenIds]:
    """Return the token ids of the check texts."""
    return backbone.tokenizer.encode(CHECK_TEXTS)


def reference_text_rows(backbone: TextBackbone, ids: list[TokenIds]) -> list[Features]:
    """Return the encoder's outputs computed by torch in fp32, one text at a time, without any padding."""
    import torch

    with torch.inference_mode():
        rows = [backbone(torch.from_numpy(one[None]), torch.ones((1, len(one)), dtype=torch.int64)) for one in ids]
    return [np.concatenate([row[index].numpy() for row in rows]) for index in range(len(backbone.outputs))]
