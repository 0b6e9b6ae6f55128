"""Batches of samples of like length."""

import time

import numpy as np
import pytest

from accel_train.data.order import Buckets, Order, rank_share

LENGTHS = np.random.default_rng(0).integers(2, 50, 1003).astype(np.int32)


def order_of(window: int, *, seed: int = 3, last_batch: str = "drop") -> Order:
    return Order(1003, 10, seed=seed, last_batch=last_batch, buckets=Buckets(LENGTHS, window))  # type: ignore[arg-type]


def epoch_of(order: Order, epoch: int) -> list[np.ndarray]:
    return [order.rows(step) for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)]


@pytest.mark.parametrize("window", [1, 7, 20, 1000])
@pytest.mark.parametrize("last_batch", ["drop", "keep"])
def test_an_epoch_has_the_rows_of_the_plain_order_once_each(window: int, last_batch: str) -> None:
    order, plain = order_of(window, last_batch=last_batch), Order(1003, 10, seed=3, last_batch=last_batch)  # type: ignore[arg-type]
    for epoch in (0, 4):
        batches = epoch_of(order, epoch)
        assert [len(batch) for batch in batches] == [len(batch) for batch in epoch_of(plain, epoch)]
        assert np.array_equal(np.sort(np.concatenate(batches)), np.sort(np.concatenate(epoch_of(plain, epoch))))
        assert [len(batch) for batch in batches] == [order.num_rows(step) for step in range(order.steps_per_epoch)]


def test_a_window_written_out() -> None:
    """The rows of a window's batches, sorted and cut; which of them comes when is the window's own draw."""
    order, plain = order_of(7), Order(1003, 10, seed=3)
    for window in (0, 1, 14):  # the last one has only two batches
        steps = range(7 * window, min(7 * window + 7, 100))
        rows = np.concatenate([plain.rows(step) for step in steps])
        cut = rows[np.argsort(LENGTHS[rows], kind="stable")].reshape(-1, 10)
        found = [order.rows(step).tolist() for step in steps]
        assert sorted(found) == sorted(cut.tolist())
    assert [order.rows(step).tolist() for step in range(7)] != sorted(order.rows(step).tolist() for step in range(7))


def test_rows_of_a_batch_are_of_like_length_and_go_from_short_to_long() -> None:
    def spread(order: Order) -> float:
        return float(np.mean([np.ptp(LENGTHS[rows]) for rows in epoch_of(order, 0)]))

    for rows in epoch_of(order_of(20), 0):
        assert np.all(np.diff(LENGTHS[rows]) >= 0)
    assert spread(order_of(20)) < 4 < 30 < spread(order_of(1))


def test_batches_of_a_window_come_in_another_order_in_each_epoch() -> None:
    order = order_of(1000)
    means = [[LENGTHS[rows].mean() for rows in epoch_of(order, epoch)] for epoch in (0, 1)]
    for sequence in means:
        assert abs(np.corrcoef(sequence, range(100))[0, 1]) < 0.35
    assert abs(np.corrcoef(*means)[0, 1]) < 0.35


def test_a_batch_depends_on_seed_epoch_and_step_alone() -> None:
    order, late = order_of(7), order_of(7)
    wanted = [order.rows(step).tolist() for step in range(250)]
    assert [late.rows(step).tolist() for step in reversed(range(250))] == wanted[::-1]
    assert order_of(7, seed=4).rows(0).tolist() != wanted[0]


def test_any_step_is_reached_within_a_windows_time() -> None:
    lengths = np.zeros(2_000_000, np.int32)
    order = Order(2_000_000, 100, seed=0, buckets=Buckets(lengths, 50))
    order.rows(0)
    began = time.perf_counter()
    assert len(np.unique(order.rows(10**9))) == 100
    assert time.perf_counter() - began < 0.2


@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 16, 61, 64])
def test_interleaved_shares(num_rows: int, world_size: int, num_micro_batches: int) -> None:
    rows = np.arange(num_rows)
    shares = [rank_share(num_rows, r, world_size, num_micro_batches, interleaved=True) for r in range(world_size)]
    in_turn = [rows[shares[rank][j]] for j in range(num_micro_batches) for rank in range(world_size)]
    assert np.array_equal(np.concatenate(in_turn), rows)
    totals = [sum(len(rows[piece]) for piece in share) for share in shares]
    assert max(totals) - min(totals) <= 1
    for share in shares:
        sizes = [len(rows[piece]) for piece in share]
        assert max(sizes) - min(sizes) <= 1


def test_interleaved_ranks_have_short_and_long_rows_alike() -> None:
    """Of 64 rows sorted by length, ranks differ by less than a micro-batch; contiguous shares by half of all."""
    rows = np.arange(64)

    def means(interleaved: bool) -> list[float]:
        shares = [rank_share(64, rank, 2, 4, interleaved=interleaved) for rank in range(2)]
        return [float(np.mean([rows[piece].mean() for piece in share])) for share in shares]

    assert np.ptp(means(True)) == 8
    assert np.ptp(means(False)) == 32
