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
    least: float = 0.0,
) -> dict[str, int]:
    """Return a width for each group with `cost` at most `target`, or the least there is: the cheapest loss each time.

    `choices`: the widths of each group, falling; `errors`: what each costs in error, convex. `least`: a cost not to
    go below while there is another way.
    """
    place = dict.fromkeys(choices, 0)
    widths = {name: options[0] for name, options in choices.items()}

    def move(name: str, step: int) -> tuple[float, float]:
        """Return the error and the cost with one group a step narrower (1) or wider (-1)."""
        at = place[name] + step
        return errors[name][at] - errors[name][at - step], cost({**widths, name: choices[name][at]})

    def take(name: str, step: int) -> None:
        place[name] += step
        widths[name] = choices[name][place[name]]

    now = cost(widths)
    while now > target:
        moves = {name: move(name, 1) for name, options in choices.items() if place[name] + 1 < len(options)}
        prices = {name: lost / (now - then) for name, (lost, then) in moves.items() if then < now}
        # a whole attention head can be more than what is still to go
        prices = {name: price for name, price in prices.items() if moves[name][1] >= least} or prices
        if not prices:
            return widths
        cheapest = min(prices, key=lambda name: prices[name])
        take(cheapest, 1)
        now = moves[cheapest][1]
    while True:  # a large last step leaves room: what wins most comes back
        moves = {name: move(name, -1) for name in choices if place[name] > 0}
        wins = {name: -change for name, (change, then) in moves.items() if then <= target}
        if not wins:
            return widths
        take(max(wins, key=lambda name: wins[name]), -1)
