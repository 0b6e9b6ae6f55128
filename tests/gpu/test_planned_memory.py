"""The memory that a plan predicts, against what CUDA's allocator held in real steps."""

from pathlib import Path

import pytest
import torch

from accel_train.config.load import load_config
from accel_train.engine.build import build_engine
from accel_train.run_log import RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.tools.memory import device_bytes
from accel_train.tools.plan.run_plan import make_plan
from accel_train.train import advance, global_batches
from tests.short_runs import ROOT

LAST_STEP = 2
TOLERANCE = 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sizes", [(128, 128), (128, 32)])
@pytest.mark.parametrize("name", ["chinese_clip", "dual_encoder_one_lr"])
def test_the_planned_peak_is_the_measured_one(
    name: str, sizes: tuple[int, int], precision: str, tmp_path: Path
) -> None:
    whole, micro = sizes
    changes = [
        f"data.global_batch_size={whole}",
        f"data.micro_batch_size={micro}",
        f"precision={precision}",
        f"run_dir={tmp_path / 'run'}",
    ]
    config = load_config(ROOT / "configs" / "small" / f"{name}.yaml", changes)
    planned = device_bytes(make_plan(config).memory)
    engine = build_engine(config)
    run = set_up(config, engine, RunLog(tmp_path / "run", is_main=True, rank=0), StopRequest(), fresh=False)
    for number, batch in enumerate(global_batches(run)):
        if number == 1:
            torch.cuda.reset_peak_memory_stats()
        advance(run, batch, [sum(len(part["sample_id"]) for part in batch.micro_batches)])
        if number == LAST_STEP:
            break
    measured = torch.cuda.max_memory_allocated()
    run.log.close()
    engine.close()
    assert planned == pytest.approx(measured, rel=TOLERANCE)
