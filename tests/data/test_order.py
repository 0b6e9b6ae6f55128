import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from accel_train.data.order import Order, Permutation, rank_share
from accel_train.errors import UserError


@pytest.mark.parametrize("size", [*range(1, 70), 97, 100, 127, 128, 1000, 4095, 4097, 65_536, 99_991])
def test_is_a_permutation(size: int) -> None:
    values = Permutation(size, b"key")(np.arange(size))
    assert values.dtype == np.int64
    assert np.array_equal(np.sort(values), np.arange(size))


def test_large_domains_stay_one_to_one_and_in_range() -> None:
    size = 10**12 + 39
    values = Permutation(size, b"key")(np.arange(size - 200_000, size))
    assert len(np.unique(values)) == 200_000
    assert values.min() >= 0 and values.max() < size


@pytest.mark.parametrize("size", [3, 4])
def test_small_permutations_are_equally_likely(size: int) -> None:
    draws = 100 * math.factorial(size)
    counts = dict.fromkeys(itertools.permutations(range(size)), 0)
    for seed in range(draws):
        counts[tuple(Permutation(size, b"%d" % seed)(np.arange(size)).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_where_a_row_lands_is_uniform_and_neighbours_are_unrelated() -> None:
    size, draws = 50, 1000
    orders = np.stack([Permutation(size, b"%d" % seed)(np.arange(size)) for seed in range(draws)])
    for position in (0, 1, 24, 49):
        assert stats.chisquare(np.bincount(orders[:, position], minlength=size)).pvalue > 1e-4
    steps = (orders[:, 1] - orders[:, 0]) % size
    assert stats.chisquare(np.bincount(steps, minlength=size)[1:]).pvalue > 1e-4
    long = Permutation(100_000, b"x")(np.arange(100_000))
    assert abs(stats.spearmanr(long[:-1], long[1:]).statistic) < 0.02
    assert stats.chisquare(np.bincount(long[:10_000] // 1000, minlength=100)).pvalue > 1e-4


@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_an_epoch_has_every_row_at_most_once(last_batch: str) -> None:
    order = Order(103, 10, seed=3, last_batch=last_batch)  # type: ignore[arg-type]
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert {order.epoch(step) for step in steps} == {epoch}
        rows = np.concatenate([order.rows(step) for step in steps])
        assert len(np.unique(rows)) == len(rows) == (103 if last_batch == "keep" else 100)
    assert len(order.rows(order.steps_per_epoch - 1)) == (3 if last_batch == "keep" else 10)


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    order, same, other = Order(100, 10, seed=1), Order(100, 10, seed=1), Order(100, 10, seed=2)
    assert np.array_equal(order.rows(57), same.rows(57))  # `same` was never asked for an earlier step
    assert not np.array_equal(order.rows(0), other.rows(0))
    assert not np.array_equal(order.rows(0), order.rows(10))


def test_without_shuffling_rows_come_as_stored() -> None:
    order = Order(10, 4, seed=1, shuffle=False, last_batch="keep")
    batches = [order.rows(step).tolist() for step in range(6)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_a_whole_number_of_batches_leaves_nothing_over() -> None:
    assert Order(12, 4, seed=0, last_batch="keep").steps_per_epoch == 3
    assert Order(12, 4, seed=0, last_batch="drop").steps_per_epoch == 3


def test_any_step_is_reached_at_once() -> None:
    order = Order(10**9, 256, seed=0)
    order.rows(0)
    tracemalloc.start()
    began = time.perf_counter()
    rows = order.rows(10**9)
    seconds = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(rows)) == 256
    assert order.epoch(10**9) == 10**9 // (10**9 // 256)
    assert seconds < 0.05
    assert peak < 64_000


def test_a_batch_larger_than_the_split_is_refused() -> None:
    with pytest.raises(UserError, match="global_batch_size is 11, but the training split has only 10"):
        Order(10, 11, seed=0)
    with pytest.raises(UserError, match="no samples"):
        Order(0, 1, seed=0)


@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 16, 61, 64])
def test_ranks_share_a_global_batch_without_gap_or_overlap(
    num_rows: int, world_size: int, num_micro_batches: int
) -> None:
    rows = np.arange(num_rows)
    shares = [rank_share(num_rows, rank, world_size, num_micro_batches) for rank in range(world_size)]
    assert all(len(share) == num_micro_batches for share in shares)
    assert np.array_equal(np.concatenate([rows[piece] for share in shares for piece in share]), rows)
    for share in shares:
        sizes = [len(rows[piece]) for piece in share]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0 or sum(sizes) < num_micro_batches
    totals = [sum(len(rows[piece]) for piece in share) for share in shares]
    assert max(totals) - min(totals) <= 1
