"""A save in the background copies from a GPU beside the next step: it holds what a save in the foreground holds."""

from pathlib import Path

import pytest
import torch

from accel_train.checkpoint.load import load_weights
from tests.gpu.test_cuda_training import CONFIG, SETTINGS
from tests.short_runs import train


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_it_holds_what_was_there_before_the_next_update(engine: str, tmp_path: Path) -> None:
    settings = {
        word.partition("=")[0]: word for word in [*SETTINGS, "checkpoint.save_every=1 step", f"engine={engine}"]
    }
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    for name in ("true", "false"):
        done = train(
            CONFIG, tmp_path / name, *settings.values(), f"checkpoint.in_background={name}", "checkpoint.keep_last=9"
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for step in (1, 2, 3, 4):
        found, wanted = (
            load_weights(tmp_path / name / "checkpoints" / f"step_{step:08d}") for name in ("true", "false")
        )
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), f"step {step}"
