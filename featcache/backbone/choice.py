"""``--backbone auto``: the best backbone at hand, or that the hub gives, and what a cache that exists already keeps.

"Best" is by what a linear head reaches on it (`featcache.backbone.probes`): only what was measured can be.
"""

from __future__ import annotations

from dataclasses import dataclass

from featcache.backbone.available import AvailableBackbone, Note, cached_probe, hub_name, probed_backbones
from featcache.backbone.embedded import EMBEDDED_BACKBONE
from featcache.backbone.hub import WHAT_TO_DO, hub_weights
from featcache.backbone.probes import RANKED_ON, Probe, read_probes
from featcache.errors import WeightsError

AUTO_BACKBONE = "auto"


@dataclass(frozen=True, slots=True)
class BackboneChoice:
    """The backbone that ``auto`` takes, and the line that says so with what it is worth."""

    backbone: AvailableBackbone
    line: str


def choose_backbone(*, download: bool, note: Note) -> BackboneChoice:
    """Return the best backbone at hand, by the accuracy of a linear head on it.

    `download`: let the hub be asked for the better ones that were probed. `note`: called with a line for each that is
    there but cannot be used. Where the hub gives nothing the line says why, and what is at hand is taken.
    """
    best, refused = probed_backbones(note=note)[0], ""
    better = _better_on_the_hub(best.rank)
    for probe in better if download else ():
        try:
            fetched = _fetch(probe, note=note)
        except WeightsError as error:
            refused = f"; the hub gave nothing better: {str(error).removesuffix(f'; {WHAT_TO_DO}')}"
            if not isinstance(error.__cause__, FileNotFoundError):
                break  # nobody answers: the next would not be had either
        else:
            if fetched is not None:
                return BackboneChoice(fetched, f"--backbone auto: {_worth(fetched)}")
    if better and not download:
        refused = f"; with --download {hub_name(better[0])} ({_percent(better[0].rank)}) is fetched from the hub"
    return BackboneChoice(best, f"--backbone auto: {_worth(best)}{refused}")


def kept_backbone(name: str, *, weights: str | None, note: Note) -> str:
    """Return the line for a cache that exists, which keeps its backbone: `name`, `weights` as it was asked for.

    It says so where a better one is at hand. `note`: as for `choose_backbone`.
    """
    line = f"--backbone auto: the cache keeps its own, {name}"
    mine = _rank_of(name, weights)
    if mine is None:
        return line
    best = probed_backbones(note=note)[0]
    if best.rank is None or best.rank <= mine:
        return line
    return (
        f"{line} ({_percent(mine)} on {RANKED_ON}); {best.name} is at hand and reaches {_percent(best.rank)}: to use "
        "it name another --cache (for run another --out), or begin this one anew with build --overwrite"
    )


def _rank_of(name: str, weights: str | None) -> float | None:
    """Return the figure of a named backbone with the weights that come with its name; None where there is none."""
    if weights is not None:
        return None
    names = {EMBEDDED_BACKBONE: EMBEDDED_BACKBONE}
    for probe in read_probes():
        if probe.hub is not None:
            names |= {probe.network: probe.name, hub_name(probe): probe.name}
    return next((probe.rank for probe in read_probes() if probe.name == names.get(name)), None)


def _better_on_the_hub(rank: float | None) -> list[Probe]:
    return [probe for probe in read_probes() if probe.hub is not None and probe.rank > (rank or 0.0)]


def _fetch(probe: Probe, *, note: Note) -> AvailableBackbone | None:
    hub_weights(hub_name(probe), {"hf_hub_id": probe.hub})
    return cached_probe(probe, note=note)


def _worth(backbone: AvailableBackbone) -> str:
    """Return the name with where it lies and what a linear head reaches on it, beside the embedded one's."""
    reached = f"{_percent(backbone.rank)} on {RANKED_ON}"
    if backbone.name != EMBEDDED_BACKBONE:
        reached += f", on {EMBEDDED_BACKBONE} {_percent(_rank_of(EMBEDDED_BACKBONE, None))}"
    if backbone.accuracy_with is not None:
        reached += f"; measured with other weights of this network, {backbone.accuracy_with}"
    return f"{backbone.name} ({backbone.where}; a linear head on it reaches {reached})"


def _percent(accuracy: float | None) -> str:
    assert accuracy is not None  # only what has a figure is compared
    return f"{100 * accuracy:.1f} %"
