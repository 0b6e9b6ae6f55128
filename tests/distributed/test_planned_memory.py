"""The memory that a plan predicts for each rank, against what two real ranks held."""

import json
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.tools.dry_run import by_blocks, spread
from accel_train.tools.memory import device_bytes
from accel_train.tools.plan.run_plan import make_plan
from tests.distributed.ranks import ROOT, run_ranks
from tests.tools.plan.memory_worker import BUCKET

CONFIG = ROOT / "configs" / "small" / "dual_encoder_one_lr.yaml"
BATCHES = {"one micro-batch": (2, 4), "three micro-batches": (2, 12)}
"""micro_batch_size, so small that weights weigh, and global_batch_size."""
CASES = [
    *((engine, batch) for engine in ("ddp", "zero1", "fsdp2") for batch in BATCHES),
    ("zero2", "one micro-batch"),
]
"""docs/plan.md has how far off the others are."""
TOLERANCE = 0.15


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, int]]:
    root = tmp_path_factory.mktemp("memory")
    runs, planned = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "REDUCE_BUCKET", BUCKET)
        patch.setattr(by_blocks, "REDUCE_BUCKET", BUCKET)
        patch.setattr(by_blocks, "ZERO3_LIVE", BUCKET)
        for engine, batch in CASES:
            micro, whole = BATCHES[batch]
            changes = [
                f"engine={engine}",
                f"data.micro_batch_size={micro}",
                f"data.global_batch_size={whole}",
                "data.num_workers=0",
                f"run_dir={root / engine / str(whole)}",
            ]
            planned.append(device_bytes(make_plan(load_config(CONFIG, changes), world_size=2).memory))
            runs.append(" ".join([str(CONFIG), *changes]))
    out = Path(root) / "out.json"
    finished = run_ranks(2, "-m", "tests.tools.plan.memory_worker", str(out), *runs)
    assert [rank.exit_code for rank in finished] == [0, 0]
    return dict(zip(CASES, zip(json.loads(out.read_text()), planned, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("engine", "batch"), CASES)
def test_the_planned_peak_is_the_measured_one(
    engine: str, batch: str, compared: dict[tuple[str, str], tuple[int, int]]
) -> None:
    measured, planned = compared[engine, batch]
    assert planned == pytest.approx(measured, rel=TOLERANCE)
