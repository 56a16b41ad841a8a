"""Axes of a drawing: round numbers that span the values, evenly or by powers of ten, and how they are written."""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def linear_ticks(low: float, high: float, *, most: int = 5) -> tuple[float, ...]:
    """Return at most `most` + 1 evenly spaced round numbers, the first at most `low` and the last at least `high`.

    Examples
    --------
    >>> linear_ticks(0.913, 0.972)
    (0.9, 0.92, 0.94, 0.96, 0.98)
    >>> linear_ticks(3.0, 3.0)
    (2.0, 2.5, 3.0, 3.5, 4.0)
    """
    if high <= low:
        spread = abs(low) / 4 or 1.0
        low, high = low - spread, high + spread
    magnitude = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (magnitude * factor for factor in (*_STEPS, 20.0)):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    digits = max(0, 2 - math.floor(math.log10(step)))
    return tuple(round(number * step, digits) for number in range(first, last + 1))


def power_ticks(low: float, high: float, *, most: int = 7) -> tuple[int, ...]:
    """Return at most `most` exponents of the powers of ten from `low` to `high`, both above 0; none may lie there.

    Examples
    --------
    >>> power_ticks(2e-4, 30.0)
    (-3, -2, -1, 0, 1)
    """
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return tuple(exponents[:: max(1, math.ceil(len(exponents) / most))])


def power_text(exponent: int) -> str:
    """Return a power of ten as it is read.

    Examples
    --------
    >>> [power_text(exponent) for exponent in (-5, -2, 0, 3)]
    ['10⁻⁵', '0.01', '1', '10³']
    """
    return f"{10.0**exponent:g}" if -2 <= exponent <= 2 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def tick_texts(ticks: tuple[float, ...], *, percent: bool) -> tuple[str, ...]:
    """Return evenly spaced `ticks` as text, all with as many decimals as their step needs.

    Examples
    --------
    >>> tick_texts((0.9, 0.925, 0.95), percent=True)
    ('90.0%', '92.5%', '95.0%')
    >>> tick_texts((0, 500, 1000), percent=False)
    ('0', '500', '1,000')
    """
    shown = [100 * tick for tick in ticks] if percent else list(ticks)
    digits = next((d for d in range(6) if all(abs(round(value, d) - value) < 1e-9 for value in shown)), 6)
    return tuple(f"{value:,.{digits}f}" + "%" * percent for value in shown)
