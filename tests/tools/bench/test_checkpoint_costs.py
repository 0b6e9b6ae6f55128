"""The benchmark of checkpoints runs and measures what it says. Its figures are taken by hand, on a machine that is idle."""

import math
from dataclasses import asdict
from pathlib import Path

import pytest

from accel_train.tools.bench.checkpoint_costs import bench_checkpoint


@pytest.mark.slow
def test_costs_of_a_small_checkpoint(tmp_path: Path) -> None:
    costs = bench_checkpoint(tmp_path, mebibytes=24, rounds=1)
    assert costs.mebibytes == pytest.approx(24, rel=0.01)
    assert all(math.isfinite(value) and value >= 0 for value in asdict(costs).values()), costs
    assert costs.background_stall_seconds < costs.save_seconds * costs.background_to_save
    assert costs.save_to_raw_write < 20, "far more than any machine's noise"
    assert costs.load_memory_to_size < 0.25, "each piece is read into its place"
