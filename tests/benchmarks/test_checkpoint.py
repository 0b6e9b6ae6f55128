"""What a checkpoint costs beside a raw write of as many bytes."""

from collections.abc import Callable
from pathlib import Path

from accel_train.tools.bench.checkpoint_costs import bench_checkpoint
from accel_train.tools.bench.figures import Figure


def test_checkpoint(record: Callable[[Figure], None], tmp_path: Path) -> None:
    costs = bench_checkpoint(tmp_path, mebibytes=256, rounds=10)
    for figure in costs.figures():
        record(figure)
