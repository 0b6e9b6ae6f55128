"""The reading of a range test, on curves whose right answer is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from accel_train.tools.find_lr.curve import exponential_rates, has_diverged, read_curve, smooth

RATES = exponential_rates(1e-7, 1e-2, 100)


def test_rates_rise_by_one_factor() -> None:
    assert RATES[0] == 1e-7 and RATES[-1] == pytest.approx(1e-2)
    factors = [b / a for a, b in pairwise(RATES)]
    assert factors == pytest.approx([factors[0]] * 99)


def test_smoothing_is_a_centred_mean() -> None:
    values = np.array([1.0, 5.0, 3.0, 7.0, 4.0])
    assert smooth(values, 3) == pytest.approx([3.0, 3.0, 5.0, 14 / 3, 5.5])


@pytest.mark.parametrize("curvature", [0.5, 40.0, 3e4])
def test_quadratic_bowl_under_sgd(curvature: float) -> None:
    """The best rate of gradient descent on a bowl of curvature c is 1 / c, and it diverges above 2 / c.

    The gradient has noise: without it the weight would be at its best for good before the rate is too high.
    """
    rates = exponential_rates(1e-4 / curvature, 10 / curvature, 100)
    draw = np.random.default_rng(0)
    weight, losses = 1.0, []
    for rate in rates:
        losses.append(0.5 * curvature * weight**2)
        weight -= rate * curvature * (weight + 0.1 * draw.normal())
    reading = read_curve(rates, losses)
    assert reading.suggestion is not None and reading.diverged is not None
    assert 1 / 6 < reading.suggestion * curvature < 2
    assert reading.diverged * curvature > 2


def test_logistic_regression_under_adam() -> None:
    """Against the best of many short trainings: the suggestion must do nearly as well as the best rate does."""

    def training(rates: list[float], steps: int) -> list[float]:
        draw = torch.Generator().manual_seed(0)
        inputs = torch.randn(2000, 20, generator=draw)
        labels = (inputs @ torch.randn(20, generator=draw) + 0.3 * torch.randn(2000, generator=draw) > 0).float()
        weight = torch.zeros(20, requires_grad=True)
        optimizer = torch.optim.Adam([weight])
        losses = []
        for step in range(steps):
            rows = torch.randint(0, 2000, (256,), generator=draw)
            optimizer.param_groups[0]["lr"] = rates[step % len(rates)]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs[rows] @ weight, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    rates = exponential_rates(1e-5, 100.0, 100)
    reading = read_curve(rates, training(rates, 100))
    assert reading.suggestion is not None, reading.reason

    def outcome(rate: float) -> float:
        return float(np.mean(training([rate], 100)[-10:]))

    grid = {rate: outcome(rate) for rate in exponential_rates(1e-4, 100.0, 13)}
    best = min(grid, key=lambda rate: grid[rate])
    assert best / 5 < reading.suggestion < 5 * best
    assert outcome(reading.suggestion) < min(grid.values()) + 0.1 * (math.log(2) - min(grid.values()))


def test_a_flat_curve_suggests_nothing() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    reading = read_curve(RATES, (5 + noise).tolist())
    assert reading.suggestion is None and "does not fall" in reading.reason


def test_a_curve_that_never_turns_suggests_nothing() -> None:
    reading = read_curve(RATES, [5 - 2 / (1 + 1e-3 / rate) for rate in RATES])
    assert reading.suggestion is None and reading.steepest is not None and "raise the upper limit" in reading.reason


def test_losses_that_are_not_finite_mark_the_end() -> None:
    losses = [5 - 4 / (1 + 1e-4 / rate) if rate < 1e-3 else math.nan for rate in RATES]
    reading = read_curve(RATES, losses)
    assert reading.diverged == pytest.approx(1e-3, rel=0.13)
    assert reading.suggestion is not None
    assert read_curve(RATES, [math.nan] * 3).suggestion is None


def test_noise_moves_the_reading_little() -> None:
    clean = [5 - 4 / (1 + (1e-4 / rate) ** 2) + (rate / 2e-3) ** 2 for rate in RATES]
    found = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.1, 100)
        suggestion = read_curve(RATES, (np.array(clean) + noise).tolist()).suggestion
        assert suggestion is not None
        found.append(suggestion)
    middle = read_curve(RATES, clean).suggestion
    assert middle is not None
    assert middle / 3 < min(found) <= max(found) < 3 * middle


def test_a_test_ends_where_the_loss_explodes() -> None:
    losses = [5 - 4 / (1 + 1e-5 / rate) + (rate / 1e-4) ** 2 for rate in RATES]
    ends = [count for count in range(1, 101) if has_diverged(losses[:count], 100)]
    assert ends and RATES[ends[0]] < 2e-3
    assert not has_diverged(losses[:20], 100)
    assert has_diverged([5.0, math.nan], 100) and not has_diverged([], 100)
