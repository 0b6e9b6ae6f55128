"""A task of one's own, that of docs/add_a_task.md, on two ranks: the losses of one process."""

import json
from pathlib import Path

import pytest

from tests.distributed.ranks import ROOT, run_ranks

EXAMPLE = ROOT / "examples" / "triplet"
ACROSS_SPLITS = 1e-5


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_two_ranks_train_what_one_does(engine: str, one_rank: list[float], tmp_path: Path) -> None:
    assert trained(2, tmp_path, f"engine={engine}") == pytest.approx(one_rank, abs=ACROSS_SPLITS)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    losses = trained(1, tmp_path_factory.mktemp("one_rank"), "data.micro_batch_size=32")
    assert len(losses) == 8 and losses[-1] < losses[0]
    return losses


def trained(world_size: int, folder: Path, *overrides: str) -> list[float]:
    command = ["train", str(EXAMPLE / "triplet.yaml"), f"run_dir={folder / 'run'}", f"data.path={EXAMPLE / 'data'}"]
    length = ["num_epochs=null", "max_steps=8", "log.log_every=1 step", "evaluation.evaluate_every=4 steps"]
    ranks = run_ranks(world_size, "-m", "accel_train", *command, *length, *overrides, PYTHONPATH=f"{ROOT}:{EXAMPLE}")
    assert [rank.exit_code for rank in ranks] == [0] * world_size
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["split"] == "train"]
