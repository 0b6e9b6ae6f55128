"""Figures of speed: ratios of two ways that were timed in turns, in one run on one machine, and what is kept of them.

An absolute time says more about the machine and its hour than about the code. Ways that take turns meet the same machine,
so each round gives one ratio; a figure is the median of the rounds, and its spread says how far they lie apart.
"""

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from accel_train.errors import UserError
from accel_train.json_text import read_json

NOISE_SPREADS = 2.0
"""Two figures differ beyond noise where they lie further apart than so many of their joined spreads."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement."""

    name: str
    """What is measured, as `subject/what`, such as `loop/one_process`."""
    value: float
    spread: float
    """Half the distance between the quartiles of the rounds, in the unit of `value`."""
    goal: float | None
    """What the value should reach, or stay below where lower is better."""
    how: str
    """How it was taken, in a sentence."""
    better: Literal["higher", "lower"] = "higher"
    unit: str = "ratio"

    def __str__(self) -> str:
        sign = ">=" if self.better == "higher" else "<="
        goal = "" if self.goal is None else f", goal {sign} {self.goal:g}{': MISSED' if self.is_missed else ''}"
        return f"{self.name}: {self.value:.4g} {self.unit} (spread {self.spread:.2g}{goal})"

    @property
    def is_missed(self) -> bool:
        """Whether the goal lies outside of the spread, on the far side."""
        return self.goal is not None and _behind(self.value, self.goal, self.better) > self.spread


def median_and_spread(rounds: Sequence[float]) -> tuple[float, float]:
    """The median, and half the distance between the quartiles (0 for a single round)."""
    if len(rounds) < 2:
        return rounds[0], 0.0
    low, middle, high = statistics.quantiles(rounds, n=4, method="inclusive")
    return middle, (high - low) / 2


def in_turns(
    ways: dict[str, Callable[[], object]],
    *,
    rounds: int,
    settle: Callable[[], object] = lambda: None,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each way in every round. Each is called once before, untimed; which comes first changes every round.

    `settle` is called before the clock is read: on a GPU it waits for the device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for action in ways.values():
        action()
    for number in range(rounds):
        names = list(ways)
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            settle()
            start = time.perf_counter()
            ways[name]()
            settle()
            seconds[name].append(time.perf_counter() - start)
        after_round()
    return seconds


def ratio_figure(
    name: str,
    over: Sequence[float],
    under: Sequence[float],
    *,
    goal: float | None,
    how: str,
    better: Literal["higher", "lower"] = "higher",
) -> Figure:
    """The ratio over / under of two lists of rounds that were taken in turns."""
    value, spread = median_and_spread([a / b for a, b in zip(over, under, strict=True)])
    return Figure(name, value, spread, goal, how, better)


# The file of `make bench`


def machine_facts() -> dict[str, Any]:
    """What of this machine decides speed, as `doctor` sees it."""
    from accel_train.tools.machine import facts  # with torch, which reading figures does not need

    found = facts(Path.cwd())
    kept = ("system", "python", "packages", "cpus", "cpu_quota", "torch_threads", "memory_total", "devices", "backends")
    return {"processor": _processor(), **{name: found[name] for name in kept}}


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """One JSON file with the date, the machine, and every figure in the order of names."""
    entries = [asdict(figure) for figure in sorted(figures, key=lambda figure: figure.name)]
    taken = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"taken": taken, "machine": machine_facts(), "figures": entries}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_figures(path: Path) -> tuple[dict[str, Any], dict[str, Figure]]:
    """The machine, and the figures by name. Raises UserError."""
    try:
        content = read_json(path.read_bytes())
        figures = [Figure(**entry) for entry in content["figures"]]
        return content["machine"], {figure.name: figure for figure in figures}
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of `make bench`: {error!r}.") from error


def slower(old: Figure, new: Figure) -> float | None:
    """By which share of the old value the new one is worse, if that is more than noise. None: it is not."""
    behind = _behind(new.value, old.value, new.better)
    return behind / old.value if behind > NOISE_SPREADS * math.hypot(old.spread, new.spread) else None


def _behind(value: float, wanted: float, better: Literal["higher", "lower"]) -> float:
    return wanted - value if better == "higher" else value - wanted


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
