"""Means over seeds: Student's t as scipy has it, and which runs belong together."""

import numpy as np
import pytest
from scipy import stats

from accel_train.tools.report.record import read_record
from accel_train.tools.report.seeds import estimate, grouped, t_quantile
from tests.tools.report.conftest import MakeRun, falling


@pytest.mark.parametrize("degrees", [1, 2, 5, 10, 11, 12, 20, 50, 1000])
def test_quantiles_are_those_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-4)


@pytest.mark.parametrize("count", [2, 3, 7, 30])
def test_the_interval_is_the_one_of_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(0.6, 0.02, count)
    found = estimate(values.tolist())
    assert found is not None and found.half_width is not None
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert (found.mean, found.count) == (pytest.approx(values.mean()), count)
    assert found.half_width == pytest.approx((high - low) / 2, rel=2e-4)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    alone = estimate([0.5])
    assert alone is not None and alone.half_width is None
    assert estimate([]) is None


def test_runs_that_differ_only_in_seed_and_place_belong_together(make_run: MakeRun) -> None:
    other = "optimizer.towers.image.lr=1e-4"
    runs = [make_run("a"), make_run("c", other), make_run("b", "seed=1", lines=falling(1)), make_run("d", "seed=2")]
    groups = grouped([read_record(run) for run in runs])
    assert [[record.name for record in group.records] for group in groups] == [["a", "b", "d"], ["c"]]
    assert [group.name for group in groups] == ["a (3 seeds)", "c"]
