"""Figures: their median and spread, ways taken in turns, the file they are kept in."""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accel_train.errors import UserError
from accel_train.tools.bench.figures import (
    Figure,
    in_turns,
    median_and_spread,
    ratio_figure,
    read_figures,
    slower,
    write_figures,
)

FIGURE = Figure("loop/one_process", 0.98, 0.01, 0.98, how="by hand")
COSTS = Figure("step/cached", 1.2, 0.02, 1.3, how="by hand", better="lower")


def test_median_and_spread_are_numpys() -> None:
    rounds = list(np.random.default_rng(0).normal(size=31))
    low, middle, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    assert median_and_spread(rounds) == pytest.approx((middle, (high - low) / 2))
    assert median_and_spread([3.0]) == (3.0, 0.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that gets three times slower in the middle changes no ratio."""
    slow = [1.0, 3.0, 1.0, 3.0, 9.0]
    figure = ratio_figure("a/b", [2 * seconds for seconds in slow], slow, goal=1.9, how="")
    assert (figure.value, figure.spread) == (2.0, 0.0)
    assert statistics.median(slow) != slow[0] or not figure.is_missed


def test_ways_take_turns_and_none_is_always_first() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = in_turns(ways, rounds=4)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(
    ("figure", "missed"),
    [
        (replace(FIGURE, value=0.975), False),
        (replace(FIGURE, value=0.96), True),
        (replace(FIGURE, value=1.5), False),
        (replace(COSTS, value=1.31), False),
        (replace(COSTS, value=1.33), True),
        (replace(COSTS, value=9.0, goal=None), False),
    ],
)
def test_a_goal_is_missed_beyond_the_spread(figure: Figure, missed: bool) -> None:
    assert figure.is_missed is missed
    assert ("MISSED" in str(figure)) is missed


def test_slower_is_beyond_the_noise_of_both() -> None:
    assert slower(FIGURE, replace(FIGURE, value=0.96)) is None
    assert slower(FIGURE, replace(FIGURE, value=0.90)) == pytest.approx(0.08 / 0.98)
    assert slower(FIGURE, replace(FIGURE, value=0.90, spread=0.1)) is None
    assert slower(COSTS, replace(COSTS, value=1.32)) == pytest.approx(0.1)
    assert slower(COSTS, replace(COSTS, value=1.0)) is None


def test_figures_are_kept_with_their_machine(tmp_path: Path) -> None:
    write_figures(tmp_path / "bench.json", [COSTS, FIGURE])
    machine, figures = read_figures(tmp_path / "bench.json")
    assert list(figures.values()) == [FIGURE, COSTS]
    assert machine["cpus"] >= 1
    assert machine["packages"]["torch"]
    assert "host" not in machine, "a name that says nothing about speed"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"machine": {}, "figures": [{"name": "a"}]}'])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError, match=r"no file of `make bench`"):
        read_figures(tmp_path / "odd.json")
