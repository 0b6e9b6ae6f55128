"""The peak that a plan predicts, against what torch's allocator held in real steps of one process."""

import json
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.tools.memory import device_bytes
from accel_train.tools.plan.run_plan import make_plan
from tests.distributed.ranks import run_ranks
from tests.small_data import data_for

SMALL = Path(__file__).parents[3] / "configs" / "small"
TOLERANCE = 0.15
CASES = {
    "cached, micro-batches": ("chinese_clip", ["data.global_batch_size=64", "data.micro_batch_size=16"]),
    "convolutions, one batch": ("dual_encoder_llrd", ["data.global_batch_size=32", "data.micro_batch_size=32"]),
    "a frozen tower": (
        "chinese_clip",
        ["data.global_batch_size=32", "data.micro_batch_size=16", "optimizer.towers.text.lr=0"],
    ),
    "blocks recomputed": (
        "chinese_clip",
        ["data.global_batch_size=32", "data.micro_batch_size=32", "compute.activation_checkpointing=true"],
    ),
    "16 bits": ("chinese_clip", ["data.global_batch_size=32", "data.micro_batch_size=32", "precision=bf16"]),
    "mostly weights": ("chinese_clip", ["data.global_batch_size=4", "data.micro_batch_size=2"]),
    "lion": (
        "chinese_clip",
        ["data.global_batch_size=4", "data.micro_batch_size=4", "optimizer.name=lion"],
    ),
    "losses that add up": (
        "sequence_classification",
        ["data.global_batch_size=8", "data.micro_batch_size=4", "data.max_text_length=4"],
    ),
    "a scorer": ("scorer", ["data.global_batch_size=8", "data.micro_batch_size=4"]),
    "three encoders": ("multimodal_llm_phase1", ["data.global_batch_size=8", "data.micro_batch_size=8"]),
    "a language model": ("multimodal_llm_phase2", ["data.global_batch_size=8", "data.micro_batch_size=4"]),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """(measured, planned) bytes of every case; one process runs them all."""
    root = tmp_path_factory.mktemp("memory")
    runs, planned = [], []
    for number, (name, overrides) in enumerate(CASES.values()):
        path = SMALL / f"{name}.yaml"
        folder = root / str(number)
        folder.mkdir()
        changes = [*data_for(path, folder), *overrides, f"run_dir={folder / 'run'}", "data.num_workers=0"]
        planned.append(device_bytes(make_plan(load_config(path, changes)).memory))
        runs.append(" ".join([str(path), *changes]))
    out = root / "out.json"
    assert run_ranks(1, "-m", "tests.tools.plan.memory_worker", str(out), *runs)[0].exit_code == 0
    measured = json.loads(out.read_text())
    return dict(zip(CASES, zip(measured, planned, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_planned_peak_is_the_measured_one(case: str, compared: dict[str, tuple[int, int]]) -> None:
    measured, planned = compared[case]
    assert planned == pytest.approx(measured, rel=TOLERANCE)
