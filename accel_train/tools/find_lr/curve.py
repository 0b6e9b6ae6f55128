"""What a learning rate range test says: where the loss falls fastest, where it turns, and a rate between the two.

The test is L. N. Smith's (Cyclical learning rates for training neural networks, WACV 2017, arXiv:1506.01186): the rate
rises exponentially, one step at each rate, and the loss is read off. Reading it is a rule of thumb, stated in `read_curve`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MIN_STEPS = 20
FALL = 5.0
"""A loss has fallen if it fell by more than this many times the noise of a smoothed value."""


BELOW_TURN = 0.25
VALLEY = 0.05
"""Losses within this share of the fall count as lowest."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a curve says. Rates are None where it says nothing."""

    smoothed: list[float]
    """One value for each loss that is finite, from the first on."""
    steepest: float | None
    """Where the smoothed loss falls fastest by the logarithm of the rate."""
    turn: float | None
    """Where the smoothed loss leaves its lowest region upwards, if it does."""
    diverged: float | None
    """Where the loss rose by more than half of what it had fallen, or was not finite."""
    suggestion: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class RangeTest:
    """One curve. `rates` are those of `tower`; the other towers keep their ratio to it, or rest."""

    what: str
    tower: str
    rates: list[float]
    losses: list[float]
    """One for each rate that was tried; the test ends where the loss has exploded."""
    configured: float
    reading: Reading

    @property
    def tried(self) -> list[float]:
        return self.rates[: len(self.losses)]


def exponential_rates(first: float, last: float, steps: int) -> list[float]:
    """`steps` rates from first to last, each the same factor above the one before."""
    return [first * (last / first) ** (step / (steps - 1)) for step in range(steps)]


def read_curve(rates: Sequence[float], losses: Sequence[float]) -> Reading:
    """Reads the test off the losses that were found, one for each of the first rates.

    Losses are smoothed by a centred window, so that the curve does not lag behind the rate. The suggestion is a quarter of
    the rate at which the loss turns, and not above the one at which it first comes near its lowest. That is a rule of thumb:
    where the best rate is known it was within a factor of 6 (tests/tools/find_lr, docs/find_lr.md).
    """
    finite = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    values = np.asarray(losses[:finite], dtype=np.float64)
    width = max(3, len(rates) // 20) | 1
    smoothed = smooth(values, width)
    noise = _noise(values, width)
    end = _divergence(smoothed, noise)
    broken = end < len(smoothed) or finite < len(losses)
    diverged = rates[min(end, len(rates) - 1)] if broken else None
    start = float(values[:width].mean()) if finite else math.nan
    if end < 3:
        return Reading(
            smoothed.tolist(), None, None, diverged, None, "the loss is not finite from the start: no rate is to blame."
        )
    lowest = int(np.argmin(smoothed[:end]))
    fall = start - float(smoothed[lowest])
    if fall <= FALL * noise or lowest < 2:
        return Reading(
            smoothed.tolist(),
            None,
            None,
            diverged,
            None,
            "the loss does not fall at any of these rates; try other limits.",
        )
    steepest = rates[_steepest(smoothed[: lowest + 1], width)]
    valley = smoothed[lowest] + VALLEY * fall
    turn_index = int(np.flatnonzero(smoothed[:end] <= valley)[-1])
    if not broken and smoothed[-1] <= valley + 2 * noise:
        reason = f"the loss still falls at {rates[lowest]:.2g}, the end of the test; raise the upper limit."
        return Reading(smoothed.tolist(), steepest, None, diverged, None, reason)
    turn = rates[turn_index]
    near = rates[int(np.flatnonzero(smoothed[:end] <= valley)[0])]
    suggestion = min(turn * BELOW_TURN, near)
    source = (
        f"a quarter of that is {suggestion:.2g}" if suggestion < near else f"it is near its lowest from {near:.2g} on"
    )
    reason = f"the loss turns at {turn:.2g}, and {source}. It falls fastest at {steepest:.2g}."
    return Reading(smoothed.tolist(), steepest, turn, diverged, suggestion, reason)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window of odd width, shorter at both ends."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = np.maximum(np.arange(len(values)) - half, 0)
    ends = np.minimum(np.arange(len(values)) + half + 1, len(values))
    means: np.ndarray = (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1)
    return means


def has_diverged(losses: Sequence[float], num_rates: int) -> bool:
    """Whether a test that has come so far may end: the rest would only show the loss explode."""
    if not losses or not math.isfinite(losses[-1]):
        return bool(losses)
    if len(losses) < MIN_STEPS:
        return False
    width = max(3, num_rates // 20) | 1
    values = np.asarray(losses, dtype=np.float64)
    smoothed = smooth(values, width)
    return _divergence(smoothed, _noise(values, width)) < len(smoothed) - width


def _steepest(falling: np.ndarray, width: int) -> int:
    """The middle of the window in which the loss falls most; rates are evenly spaced by their logarithm."""
    span = min(2 * width, len(falling) - 1)
    falls = falling[:-span] - falling[span:]
    return int(np.argmax(falls)) + span // 2


def _noise(values: np.ndarray, width: int) -> float:
    """Standard deviation of a smoothed value, from the median difference of neighbours in the first half of the test."""
    early = values[: max(4, len(values) // 2)]
    differences = [abs(b - a) for a, b in pairwise(early.tolist())]
    spread = (
        float(np.median(differences)) / 0.954 if differences else 0.0
    )  # of a normal difference: 0.6745 x sqrt(2) sigma
    return spread / math.sqrt(width)


def _divergence(smoothed: np.ndarray, noise: float) -> int:
    """The first index at which the smoothed loss has risen by half of what it fell, beyond noise; the length if none."""
    if not len(smoothed):
        return 0
    lowest = np.minimum.accumulate(smoothed)
    risen = smoothed - lowest
    limit = np.maximum(0.5 * (smoothed[0] - lowest), max(2 * FALL * noise, 0.02 * abs(float(smoothed[0]))))
    beyond = np.flatnonzero(risen > limit)
    return int(beyond[0]) if len(beyond) else len(smoothed)
