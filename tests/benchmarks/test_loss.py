"""InfoNCE by chunks beside its plain form, and the sigmoid loss around the ring beside gathered features."""

import json
from collections.abc import Callable

import pytest

from accel_train.tools.bench.figures import Figure, ratio_figure
from accel_train.tools.bench.loss_costs import memory_figure, time_figure
from tests.distributed.ranks import run_ranks


@pytest.mark.parametrize("rows", [1024, 4096, 8192])
def test_time(rows: int, record: Callable[[Figure], None]) -> None:
    record(time_figure(rows, rounds=7 if rows < 8192 else 3))


def test_memory(record: Callable[[Figure], None]) -> None:
    record(memory_figure())


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ring(num_ranks: int, record: Callable[[Figure], None]) -> None:
    rows = 4096
    ranks = run_ranks(num_ranks, "-m", "tests.benchmarks.ring_cost", str(rows), "7")
    assert [rank.exit_code for rank in ranks] == [0] * num_ranks
    found = json.loads(ranks[0].output.strip().splitlines()[-1])
    ring, gathered = found["ring"], found["gathered"]
    how = f"sigmoid loss of {rows:,} x 512 on {num_ranks} processes over gloo, around the ring over gathered"
    name = f"loss/ring_{{}}_on_{num_ranks}"
    seconds = ring["seconds"], gathered["seconds"]
    record(ratio_figure(name.format("time"), *seconds, goal=1.05, how=f"{how}: time", better="lower"))
    for what, key, goal in (("bytes", "sent", 0.51), ("memory", "held", 0.75)):
        value = ring[key] / gathered[key]
        record(Figure(name.format(what), value, 0.0, goal, how=f"{how}: {what} of a rank", better="lower"))
