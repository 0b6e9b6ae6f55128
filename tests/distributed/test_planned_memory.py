"""The memory that a plan predicts for each rank, against what two real ranks held."""

import json
from pathlib import Path

import pytest

from accel_train.config.load import load_config
from accel_train.engine import buffers
from accel_train.tools.memory import device_bytes
from accel_train.tools.plan.run_plan import make_plan
from tests.distributed.ranks import ROOT, run_ranks
from tests.small_data import data_for
from tests.tools.plan.memory_worker import BUCKET

SMALL = ROOT / "configs" / "small"
ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
MICRO_BATCH = 2
"""So small that weights weigh."""
WIDE = [
    "model.config.hidden_size=256",
    "model.config.intermediate_size=768",
    "model.config.num_hidden_layers=4",
    "data.max_text_length=16",
]
MODELS = {
    "two towers": ("dual_encoder_one_lr", []),
    "a decoder": ("sequence_classification", WIDE),
    "a decoder in 16 bits": ("sequence_classification", [*WIDE, "precision=bf16"]),
    "a frozen tower": ("chinese_clip", ["optimizer.towers.text.lr=0"]),
}
"""Of different proportions: one block and the embeddings weigh most, or all blocks alike."""
CASES = [
    *(("two towers", engine, num) for engine in ENGINES for num in (1, 3)),
    *(("a decoder", engine, 2) for engine in ENGINES),
    *(("a decoder in 16 bits", engine, 2) for engine in ("zero3", "fsdp2")),
    *(("a frozen tower", engine, 2) for engine in ("zero2", "zero3", "fsdp2")),
]
"""Model, engine and number of micro-batches."""
TOLERANCE = 0.15
Case = tuple[str, str, int]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, tuple[int, int]]:
    """(measured, planned) bytes of every case; one launch runs them all."""
    root = tmp_path_factory.mktemp("memory")
    data = {}
    for name in {name for name, _ in MODELS.values()}:
        (root / name).mkdir()
        data[name] = data_for(SMALL / f"{name}.yaml", root / name)
    runs, planned = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "REDUCE_BUCKET", BUCKET)
        patch.setattr(buffers, "ZERO3_LIVE", BUCKET)
        for place, (model, engine, num) in enumerate(CASES):
            name, overrides = MODELS[model]
            config = SMALL / f"{name}.yaml"
            changes = [
                *data[name],
                *overrides,
                f"engine={engine}",
                f"data.micro_batch_size={MICRO_BATCH}",
                f"data.global_batch_size={2 * num * MICRO_BATCH}",
                "data.num_workers=0",
                f"run_dir={root / str(place)}",
            ]
            planned.append(device_bytes(make_plan(load_config(config, changes), world_size=2).memory))
            runs.append(" ".join([str(config), *changes]))
    out = Path(root) / "out.json"
    finished = run_ranks(2, "-m", "tests.tools.plan.memory_worker", str(out), *runs)
    assert [rank.exit_code for rank in finished] == [0, 0]
    return dict(zip(CASES, zip(json.loads(out.read_text()), planned, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("model", "engine", "num"), CASES)
def test_the_planned_peak_is_the_measured_one(
    model: str, engine: str, num: int, compared: dict[Case, tuple[int, int]]
) -> None:
    """With `num` micro-batches in a step."""
    measured, planned = compared[model, engine, num]
    print(f"{model}, {engine}, {num}: {measured / 1e6:.2f} MB measured, {planned / 1e6:.2f} planned")
    assert planned == pytest.approx(measured, rel=TOLERANCE)
