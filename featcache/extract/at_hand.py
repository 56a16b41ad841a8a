"""`backbones`: what is at hand, and how fast this machine computes it with the engine that a build would take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from featcache.backbone.available import AvailableBackbone, available_backbones


def backbones(
    paths: Iterable[str | Path] = (),
    *,
    measure: bool = False,
    seconds: float = 2.0,
    say: Callable[[str], None] = lambda line: None,
) -> list[AvailableBackbone]:
    """Return the backbones at hand, those with the best linear heads first; nothing is downloaded.

    Parameters
    ----------
    paths : iterable of path
        Weights files, folders of such, and directories of text encoders to list beside the embedded backbone and what
        lies in the model hub's local cache.
    measure : bool
        Time those of images here, each opened as a build would open it. That includes neither decoding nor storing.
    seconds : float
        How long to time each.
    say : callable
        Called with a line before each is timed, and for each that is there but cannot be used.

    Returns
    -------
    list of AvailableBackbone
        Images' before texts'; without a figure behind those with one.

    Raises
    ------
    MissingError
        For a path that is not there.
    WeightsError, FormatError, BackboneError
        For a path that is no weights file of a named network and no text encoder.

    Examples
    --------
    >>> import featcache
    >>> embedded = next(one for one in featcache.backbones() if one.where == "embedded")
    >>> embedded.name, embedded.input_size, embedded.num_features
    ('featcache_nano', (128, 128), 1280)
    """
    found = available_backbones(paths, note=say)
    if not measure:
        return found
    from featcache.extract.throughput import timed

    return [timed(one, seconds=seconds, say=say) for one in found]
