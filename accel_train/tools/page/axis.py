"""Axes of charts: from values to places, and the few round values that are written along them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to 0 .. 1."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return ((math.log10(value) if self.log else value) - low) / (high - low)

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)


def axis(values: Iterable[Sequence[float]], *, log: bool, tight: bool = False) -> Axis:
    """Limits that hold all finite values (on a logarithmic axis all positive ones), with a little room unless `tight`."""
    held = np.concatenate([np.asarray(part, float) for part in values] or [np.zeros(0)])
    held = held[np.isfinite(held) & ((held > 0) | (not log))]
    if not len(held):
        return Axis(0.1 if log else 0.0, 1.0, log)
    low, high = float(held.min()), float(held.max())
    if log:
        return Axis(low / 1.1, high * 1.1, log)
    if tight and low < high:
        return Axis(low, high, log)
    room = 0.04 * (high - low) or abs(high) or 1.0
    return Axis(low - room if low < 0 or low > 3 * room else 0.0, high + room, log)


def ticks(along: Axis, most: int = 6) -> list[float]:
    """Round values within an axis, at most `most` of them."""
    if along.log:
        decades = range(math.floor(math.log10(along.low)), math.ceil(math.log10(along.high)) + 1)
        for leading in ((1, 2, 5), (1, 3), (1,)):
            found = [digit * 10.0**decade for decade in decades for digit in leading]
            found = [value for value in found if along.low <= value <= along.high]
            if 2 <= len(found) <= most:
                return found
        if len(found) > most:
            return found[:: -(-len(found) // most)]
    span = along.high - along.low
    rough = span / most
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first_multiple = math.ceil(along.low / width - 1e-9)
    found = [round(number * width, 12) for number in range(first_multiple, math.floor(along.high / width + 1e-9) + 1)]
    return [value for value in found if not along.log or value > 0]


def short(value: float) -> str:
    """A number for a tick or a reading."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def percent(share: float) -> str:
    """A share of 1 in percent, with three digits at most."""
    if not math.isfinite(share):
        return f"{share:g}"
    return f"{100 * share:.0f}\u00a0%" if abs(share) >= 0.9995 or share == 0 else f"{100 * share:.1f}\u00a0%"


def spoken(value: float, *, as_percent: bool) -> str:
    return percent(value) if as_percent else short(value)
