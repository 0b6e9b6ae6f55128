"""Runs that differ only in their seed, taken together: a mean and how sure it is."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from accel_train.tools.report.record import Record
from accel_train.tools.report.settings import PLACE

CONFIDENCE = 0.95
T_TABLE = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Group:
    """One run, or several that are the same but for the seed."""

    name: str
    records: Sequence[Record]

    @property
    def has_seeds(self) -> bool:
        return len(self.records) > 1


@dataclass(frozen=True, slots=True)
class Estimate:
    mean: float
    half_width: float | None
    """Of the 95 % interval of the mean; None for one value, which has none."""
    count: int


def grouped(records: Sequence[Record]) -> list[Group]:
    """Runs in the order given; one that differs from an earlier one only in `seed` and its place joins it."""
    found: list[list[Record]] = []
    for record in records:
        own = _without_seed(record)
        twins = next((group for group in found if _without_seed(group[0]) == own), None)
        if twins is None:
            found.append([record])
        else:
            twins.append(record)
    return [Group(_name(group), group) for group in found]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and Student's t interval. None for no values."""
    if not values:
        return None
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    error = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, t_quantile(count - 1) * error, count)


def t_quantile(degrees: int) -> float:
    """Two-sided 95 % quantile. Beyond the table the Cornish-Fisher expansion in 1 / degrees, right to four digits."""
    if degrees <= len(T_TABLE):
        return T_TABLE[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _without_seed(record: Record) -> dict[str, object]:
    return {key: value for key, value in record.settings.leaves.items() if key not in (*PLACE, "seed")}


def _name(records: Sequence[Record]) -> str:
    if len(records) == 1:
        return records[0].name
    return f"{records[0].name} ({len(records)} seeds)"
