"""What a linear head reaches on a backbone: figures that were measured by this project, and on which weights.

``weights/probes.json`` is written by ``scripts/train_embedded.py probe``; the card of the embedded backbone is made
from it, too. A backbone that is not in there has no figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from featcache.system.json import DocumentKind, read_document

# Its photos took no part in the embedded training; tinyimagenet200 is of ImageNet, which the others learned from.
RANKED_ON = "clothing10"
PROBES = DocumentKind(
    "the table of probes", "install featcache again", "install featcache again", "featcache-probes", (1,), ("probes",)
)


@dataclass(frozen=True, slots=True)
class Probe:
    """The accuracy of a linear head on one network with one set of weights.

    `name`: what the weights are called here. `network`: timm's name. `weights`: their file's name, or ``random:SEED``;
    `bytes`, `sha256`: that file's. `parameters`: without a classifier. `classifier`: the name of that layer. `hub`: the
    repository from which timm takes the network's weights, other ones than these, `tag` timm's word for them; None
    where there is none. `accuracy`: by data set, in [0, 1].
    """

    name: str
    network: str
    weights: str
    bytes: int
    sha256: str | None
    parameters: int
    num_features: int
    height: int
    width: int
    classifier: str | None
    hub: str | None
    tag: str | None
    accuracy: Mapping[str, float]

    @property
    def rank(self) -> float:
        """The figure that backbones are compared by."""
        return self.accuracy[RANKED_ON]


def probes_file() -> Path:
    """Return the path of the table."""
    return Path(__file__).resolve().parent / "weights" / "probes.json"


@cache
def read_probes() -> tuple[Probe, ...]:
    """Return the table, best first.

    Raises `MissingError` or `CorruptError` where the installation lacks it.
    """
    listed: list[dict[str, Any]] = read_document(probes_file(), PROBES)["probes"]
    return tuple(sorted((Probe(**entry) for entry in listed), key=lambda probe: -probe.rank))
