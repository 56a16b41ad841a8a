"""How many channels each group keeps: the least error of the features for what may be left of the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

LEAST_SHARE = 0.1  # of a group that stays: one emptied altogether would cut the network


def widths_of(width: int, unit: int, multiple: int) -> list[int]:
    """Return the widths, falling, that a group of `width` channels may have: all, multiples of `unit` or `multiple`."""
    step = unit if unit > 1 else multiple
    least = max(step, LEAST_SHARE * width)
    return [width, *(kept for kept in range(width - 1, 0, -1) if kept % step == 0 and kept >= least)]


def convex_errors(kept: Sequence[int], measured: Mapping[int, float]) -> list[float]:
    """Return an error for each width of `kept` (falling, the first is whole): the convex hull below what was measured.

    Errors that fall when more goes are noise of the measurement: they are lifted first.
    """
    points = sorted(((width, error) for width, error in measured.items() if width < kept[0]), reverse=True)
    removed = np.array([0, *(kept[0] - width for width, _ in points)], dtype=np.float64)
    errors = np.maximum.accumulate(np.array([0.0, *(error for _, error in points)]))
    hull = [0]
    for index in range(1, len(removed)):
        while len(hull) > 1 and _slope(removed, errors, hull[-2], hull[-1]) >= _slope(removed, errors, hull[-1], index):
            hull.pop()
        hull.append(index)
    return [float(np.interp(kept[0] - width, removed[hull], errors[hull])) for width in kept]


def _slope(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], a: int, b: int) -> float:
    return float((y[b] - y[a]) / (x[b] - x[a]))


def allocate(
    choices: Mapping[str, Sequence[int]],
    errors: Mapping[str, Sequence[float]],
    cost: Callable[[Mapping[str, int]], float],
    *,
    target: float,
) -> dict[str, int]:
    """Return a width for each group with `cost` at most `target`, or the least there is: the cheapest loss each time.

    `choices`: the widths of each group, falling; `errors`: what each costs in error, convex.
    """
    place = dict.fromkeys(choices, 0)
    widths = {name: options[0] for name, options in choices.items()}
    now = cost(widths)
    while now > target:
        best: tuple[float, str, float] | None = None
        for name, options in choices.items():
            at = place[name] + 1
            if at == len(options):
                continue
            then = cost({**widths, name: options[at]})
            if then >= now:
                continue
            price = (errors[name][at] - errors[name][at - 1]) / (now - then)
            if best is None or price < best[0]:
                best = (price, name, then)
        if best is None:
            return widths
        _, name, now = best
        place[name] += 1
        widths[name] = choices[name][place[name]]
    return widths
