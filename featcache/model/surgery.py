"""What was done to a network's layout, as plain values: batch norms folded, layers given other widths.

A MODEL records them, and they are replayed on the freshly built timm network before its weights are loaded, so that no
code and no pickled module is ever stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from featcache.model.folding import fold_batchnorms
from featcache.model.widths import Widths, resize_layers


@dataclass(frozen=True, slots=True)
class Surgery:
    """What was done to the timm network's layout since it was built: values that `load_model` replays.

    `folded`: ``{convolution: batch norm}`` folded, by module name. `widths`: the layers whose widths differ, with them.
    """

    folded: Mapping[str, str] = field(default_factory=dict)
    widths: Widths = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "folded": dict(self.folded),
            "widths": {name: dict(values) for name, values in self.widths.items()},
        }

    def apply(self, network: nn.Module) -> None:
        """Do it to `network`, in place; values are undefined until loaded."""
        resize_layers(network, self.widths)  # first: the widths name batch norms that folding takes away
        fold_batchnorms(network, self.folded)
