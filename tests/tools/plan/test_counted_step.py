"""A step that is counted on fake tensors, and a signal in its midst."""

import signal

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_train.config.load import load_config
from accel_train.optim.param_groups import plan_groups
from accel_train.tasks.build import build_task
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.step import Split, batches_on_device, dry_step
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


def test_fake_tensors_count_as_real_ones() -> None:
    """Autograd asks a fake tensor for its device through the same mode, which is no work."""

    def work() -> Counting:
        with Counting() as counted:
            layer = torch.nn.Linear(3, 4)
            layer(torch.ones(2, 3)).tanh().sum().backward()
        return counted

    with FakeTensorMode():
        fake = work()
    real = work()
    assert fake.work == real.work
    assert fake.peak == real.peak


def test_a_pass_without_a_graph_counts_as_one_with() -> None:
    config = load_config(CONFIG, [])
    task = build_task(config)
    with torch.device("meta"):
        model = task.build_model()
    split = Split("ddp", 1, 2, 3, activation_checkpointing=False)
    work = dry_step(model, plan_groups(model, config.optimizer), task, split).counted.work
    with_graph = {one._replace(phase=""): times for one, times in work.items() if one.phase == "forward"}
    without = {one._replace(phase=""): times for one, times in work.items() if one.phase == "forward, for features"}
    assert with_graph == without
    assert len(with_graph) > 10


@pytest.mark.parametrize(("on_gpu", "expected"), [(True, 2), (False, 5)])
def test_a_gpu_holds_the_batches_at_work(on_gpu: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    split = Split("ddp", 2, 8, 5, activation_checkpointing=False, kept_graphs=2)
    assert batches_on_device(split) == expected
