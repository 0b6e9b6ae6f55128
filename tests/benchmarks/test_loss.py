"""InfoNCE by chunks beside its plain form."""

from collections.abc import Callable

import pytest

from accel_train.tools.bench.figures import Figure
from accel_train.tools.bench.loss_costs import memory_figure, time_figure


@pytest.mark.parametrize("rows", [1024, 4096, 8192])
def test_time(rows: int, record: Callable[[Figure], None]) -> None:
    record(time_figure(rows, rounds=7 if rows < 8192 else 3))


def test_memory(record: Callable[[Figure], None]) -> None:
    record(memory_figure())
