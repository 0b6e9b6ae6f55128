"""What fits into a device, against the plan of that size itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from accel_train.config.load import load_config
from accel_train.optim.param_groups import GroupPlan, plan_groups
from accel_train.tasks.build import build_task
from accel_train.tasks.task import Task
from accel_train.tools.dry_run.step import Split, dry_step
from accel_train.tools.memory import device_bytes, memory_parts
from accel_train.tools.plan.command import plan
from accel_train.tools.plan.fits import fits, graphs_that_fit
from accel_train.tools.plan.pictures import draw_fits

CONFIG = Path(__file__).parents[3] / "configs" / "small" / "chinese_clip.yaml"


def parts() -> tuple[nn.Module, GroupPlan, Task]:
    config = load_config(CONFIG, [])
    task = build_task(config)
    with torch.device("meta"):
        model = task.build_model()
    return model, plan_groups(model, config.optimizer), task


@pytest.mark.slow
def test_one_more_sample_would_not_fit(tmp_path: Path) -> None:
    model, groups, task = parts()
    split = Split("ddp", 2, 64, 1, activation_checkpointing=False)
    limit = 100_000_000
    found = fits(model, groups, task, split, limit)
    assert [(fit.engine, fit.activation_checkpointing) for fit in found[:3]] == [
        ("ddp", False),
        ("ddp", True),
        ("zero1", False),
    ]

    def needs(engine: str, size: int, *, checkpointing: bool) -> int:
        changed = replace(split, engine=engine, micro_batch_size=size, activation_checkpointing=checkpointing)
        return device_bytes(memory_parts(dry_step(model, groups, task, changed), groups, task.config))

    for fit in (found[0], found[1], found[8]):
        kept = {"checkpointing": fit.activation_checkpointing}
        assert needs(fit.engine, fit.micro_batch_size, **kept) == fit.num_bytes <= limit
        assert needs(fit.engine, fit.micro_batch_size + 2, **kept) > limit
    assert found[1].micro_batch_size > found[0].micro_batch_size
    assert found[0].dividing == max(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= found[0].micro_batch_size)
    nothing = fits(model, groups, task, split, 1_000)
    assert {fit.micro_batch_size for fit in nothing} == {0}
    draw_fits(found, limit, "2 ranks", str(tmp_path / "fits.png"))
    assert (tmp_path / "fits.png").stat().st_size > 10_000


def test_more_than_one_graph_is_counted_only_where_it_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = set()

    def peak(_model: nn.Module, _plan: GroupPlan, _task: Task, split: Split) -> int:
        counted.add((split.engine, split.activation_checkpointing, split.kept_graphs))
        return split.micro_batch_size

    monkeypatch.setattr("accel_train.tools.plan.fits._peak", peak)
    fits(*parts(), Split("ddp", 2, 16, 4, activation_checkpointing=False, kept_graphs=3), 64)
    several = {("ddp", False), ("zero1", False), ("zero2", False)}
    assert counted == {
        (engine, checkpointing, 3 if (engine, checkpointing) in several else 1)
        for engine in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
        for checkpointing in (False, True)
    }


@pytest.mark.slow
def test_one_more_graph_would_not_fit() -> None:
    model, groups, task = parts()
    split = Split("ddp", 1, 16, 6, activation_checkpointing=False)

    def needs(kept: int) -> int:
        dry = dry_step(model, groups, task, replace(split, kept_graphs=kept))
        return device_bytes(memory_parts(dry, groups, task.config))

    for number in (1, 2, 4, 6):
        found = graphs_that_fit(model, groups, task, split, needs(number))
        assert found is not None
        assert (found.kept_graphs, found.num_bytes) == (number, needs(number))
        assert found.share_of_time == pytest.approx((1 + (6 - number) / 18) / (1 + 5 / 18))
    assert graphs_that_fit(model, groups, task, split, needs(1) - 1) is None
    for changes in ({"engine": "fsdp2"}, {"num_micro_batches": 1}, {"activation_checkpointing": True}):
        assert graphs_that_fit(model, groups, task, replace(split, **changes), 10**12) is None


def test_a_step_that_keeps_its_light_graphs_by_itself_is_offered_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("accel_train.tools.plan.command.fits", lambda *_: [])
    frozen = [f"optimizer.towers.{tower}.lr=0" for tower in ("image", "text")]
    for changes, is_offered in (([], True), (frozen, False)):
        plan(load_config(CONFIG, ["data.micro_batch_size=32", *changes]), fit=10**12)
        assert ("4 of 4 graphs fit" in " ".join(capsys.readouterr().out.split())) == is_offered
