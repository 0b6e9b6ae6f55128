"""Against scipy, ties and constants included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from accel_train.metrics.correlation import average_ranks, count_inversions, kendall, pearson, spearman


def columns(seed: int, length: int, levels: int | None) -> tuple[Tensor, Tensor]:
    """Correlated values; with `levels`, so few different ones that many are tied."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, generator=generator)
    y = 0.5 * x + torch.randn(length, generator=generator)
    return (x, y) if levels is None else ((x * levels / 4).round(), (y * levels / 4).round())


@pytest.mark.parametrize("levels", [None, 2, 5, 30])
@pytest.mark.parametrize("length", [2, 3, 17, 64, 500])
def test_agrees_with_scipy(length: int, levels: int | None) -> None:
    x, y = columns(length, length, levels)
    if len(x.unique()) == 1 or len(y.unique()) == 1:
        pytest.skip("constant")
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x.double(), y.double()).statistic, abs=1e-9)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_any_small_table(rows: list[tuple[int, int]]) -> None:
    x, y = torch.tensor(rows, dtype=torch.float32).T
    constant = len(x.unique()) == 1 or len(y.unique()) == 1
    for own, other in ((spearman, stats.spearmanr), (kendall, stats.kendalltau), (pearson, stats.pearsonr)):
        assert own(x, y) == pytest.approx(0.0 if constant else other(x.numpy(), y.numpy()).statistic, abs=1e-6)


def test_order_alone_counts_for_ranks() -> None:
    x, y = columns(0, 50, None)
    assert spearman(x.exp(), y) == pytest.approx(spearman(x, y), abs=1e-12)
    assert kendall(-x, y) == pytest.approx(-kendall(x, y), abs=1e-12)
    assert spearman(x, x) == pytest.approx(1)
    assert kendall(x, -x) == pytest.approx(-1)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale: float) -> None:
    x, y = columns(1, 40, None)
    assert pearson(x * scale, y) == pytest.approx(pearson(x, y), abs=1e-6)


@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
def test_a_constant_is_worth_nothing(correlation) -> None:  # type: ignore[no-untyped-def]
    x = torch.arange(5.0)
    assert correlation(torch.full((5,), 0.3), x) == 0
    assert correlation(x, torch.zeros(5)) == 0


@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), "NaN"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.inf]), "infinite"),
        (torch.tensor([1.0]), torch.tensor([1.0]), "at least 2"),
        (torch.ones(3), torch.ones(4), "equally long"),
        (torch.ones(3, 1), torch.ones(3, 1), "rows"),
    ],
)
def test_what_can_not_be_scored_is_refused(correlation, x: Tensor, y: Tensor, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        correlation(x, y)


def test_average_ranks_are_those_of_scipy() -> None:
    values = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(average_ranks(values).numpy(), stats.rankdata(values))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40))
def test_inversions_are_counted(values: list[int]) -> None:
    naive = sum(values[i] > values[j] for i in range(len(values)) for j in range(i + 1, len(values)))
    assert count_inversions(torch.tensor(values, dtype=torch.int64)) == naive


def test_kendall_of_many_rows_is_quick() -> None:
    """Pair by pair these would be 2e10 comparisons."""
    x, y = columns(2, 200_000, None)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)
