"""A run over 10^9 rows that has taken a million steps, as far as its start can tell: checkpoint, metrics and ledger.

`python -m tests.benchmarks.long_run RUN_DIR` starts it, takes one step, and prints how many steps are taken then.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from accel_train.checkpoint.files import read_state, write_state
from accel_train.checkpoint.folders import folder_name
from accel_train.config.schema import DataSection, OptimizerSection, RunConfig, Tower
from accel_train.engine.build import build_engine
from accel_train.ledger import CHECKED_LINES, LEDGER_FILE, StepTaken, _linked
from accel_train.progress import Meter
from accel_train.run_log import METRICS_FILE, RunLog
from accel_train.set_up import set_up
from accel_train.stopping import StopRequest
from accel_train.tasks.task import Batch, Task
from accel_train.train import global_batches, one_step, save

ROWS, STEPS = 10**9, 10**6
WIDTH = 256


class Numbers:
    """Row k is the number k, spread over WIDTH columns."""

    fingerprint = "numbers"

    def __len__(self) -> int:
        return ROWS

    def read(self, row: int, epoch: int | None) -> Batch:
        return {"number": torch.full((WIDTH,), row / ROWS), "sample_id": torch.tensor(row)}


class Layers(nn.Sequential):
    def forward(self, batch: Batch) -> Batch:
        return {"number": super().forward(batch["number"])}


class NumbersTask(Task):
    """Learns to give numbers back."""

    score_names = ("loss",)

    def build_model(self) -> nn.Module:
        return Layers(*(nn.Linear(WIDTH, WIDTH) for _ in range(8)))

    def build_dataset(self, split: str) -> Numbers:
        return Numbers()

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        return {"square": (outputs["number"] - batch["number"]).square().mean()}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        return outputs

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        return {"loss": 0.0}

    def export(self, model: nn.Module, folder: str) -> None:
        raise NotImplementedError

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        raise NotImplementedError


def config_in(run_dir: Path) -> RunConfig:
    return RunConfig(
        task="tests.benchmarks.long_run:NumbersTask",
        run_dir=str(run_dir),
        max_steps=10 * STEPS,
        data=DataSection(path="none", valid_split=None, global_batch_size=512, micro_batch_size=64, num_workers=0),
        optimizer=OptimizerSection(towers=[Tower(name="all", layers=[".*"], lr=1e-4)]),
    )


def first_step(run_dir: Path, *, saves: bool = False) -> int:
    """What `train` does up to the end of its first step; returns how many steps are taken then."""
    config = config_in(run_dir)
    engine = build_engine(config)
    log = RunLog(run_dir, is_main=True, rank=0)
    log.console.quiet = True
    try:
        run = set_up(config, engine, log, StopRequest(), fresh=False)
        with closing(run.checkpoints), closing(global_batches(run)) as batches:
            one_step(run, next(batches), Meter(engine.device))
            if saves:
                save(run)
        return run.state.step
    finally:
        log.close()
        engine.close()


def make_long_run(run_dir: Path) -> None:
    """A run's checkpoint after one step, moved to step STEPS, with a line of metrics and one of the ledger for each step.

    Of the ledger the last lines are linked, as many as a resume checks.
    """
    first_step(run_dir, saves=True)
    root = run_dir / "checkpoints"
    folder = (root / folder_name(1)).rename(root / folder_name(STEPS))
    write_state(folder, {**read_state(folder), "step": STEPS})
    values = {"loss": 0.5, "grad_norm": 1.0, "samples_per_second": 1000.0}
    with (run_dir / METRICS_FILE).open("w", encoding="utf-8") as file:
        for step in range(1, STEPS + 1):
            file.write(json.dumps({"step": step, "split": "train", **values}) + "\n")
    ledger = run_dir / LEDGER_FILE
    chain = json.loads(ledger.read_text(encoding="utf-8").splitlines()[-1])["chain"]
    line = StepTaken(0, np.arange(512), 512, {"square": torch.tensor(0.5)}, 1.0).line()
    with ledger.open("a", encoding="utf-8") as file:
        for step in range(2, STEPS + 1):
            line["step"] = step
            chain = _linked(chain, line) if step > STEPS - CHECKED_LINES - 2 else chain
            file.write(json.dumps({**line, "chain": chain}) + "\n")


if __name__ == "__main__":
    print(first_step(Path(sys.argv[1])))
