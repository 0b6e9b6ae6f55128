"""A step that is counted on fake tensors, and a signal in its midst."""

import signal

import pytest
import torch

from accel_train.config.load import load_config
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.build import build_task
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.step import Split, dry_step
from tests.tools.plan.test_fits import CONFIG


@pytest.mark.slow
def test_ctrl_c_when_a_storage_is_freed_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the call comes out of torch's own C++, which drops what is raised."""
    config = load_config(CONFIG, [])
    task = build_task(config)
    with torch.device("meta"):
        model = task.build_model()
    freed = Counting._freed
    calls = 0

    def interrupted(self: Counting, key: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        freed(self, key)

    monkeypatch.setattr(Counting, "_freed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dry_step(
            model, plan_groups(model, config.optimizer), task, Split("ddp", 1, 2, 1, activation_checkpointing=False)
        )
    assert calls > 3  # it went on to its end
