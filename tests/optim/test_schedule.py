import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from accel_train.config.schema import ScheduleSection
from accel_train.optim.schedule import lr_scale, num_warmup_steps


def scales(schedule: ScheduleSection, total_steps: int, steps_per_epoch: int = 10) -> list[float]:
    return [
        lr_scale(step, schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        for step in range(total_steps)
    ]


def torch_scales(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], num_steps: int) -> list[float]:
    """What a torch scheduler makes of a base rate of 1, read at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's SequentialLR warns about its own use of step(epoch)
            scheduler.step()
    return found


def test_warmup_starts_above_zero_and_ends_at_one() -> None:
    found = scales(ScheduleSection(name="constant", warmup_steps=4), 6)
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("warmup", "lowest", "total"), [(0, 0.0, 10), (3, 0.1, 20), (7, 0.5, 8)])
def test_cosine_against_a_loop(warmup: int, lowest: float, total: int) -> None:
    naive = []
    for s in range(total):
        if s < warmup:
            naive.append((s + 1) / warmup)
        else:
            progress = (s - warmup) / (total - warmup)
            naive.append(lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress)))
    schedule = ScheduleSection(name="cosine", warmup_steps=warmup, min_lr_ratio=lowest)
    assert scales(schedule, total) == pytest.approx(naive, rel=1e-12)


def test_cosine_is_torchs() -> None:
    expected = torch_scales(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.1), 20)
    assert scales(ScheduleSection(name="cosine", min_lr_ratio=0.1), 20) == pytest.approx(expected)


def test_warmup_and_cosine_are_torchs() -> None:
    def sequential(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        warmup = lr_scheduler.LinearLR(optimizer, start_factor=1 / 5, total_iters=4)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
        return lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[5])

    assert scales(ScheduleSection(name="cosine", warmup_steps=5), 20) == pytest.approx(torch_scales(sequential, 20))


def test_linear_is_torchs() -> None:
    expected = torch_scales(lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=16), 16)
    assert scales(ScheduleSection(name="linear", min_lr_ratio=0.2), 16) == pytest.approx(expected)


def test_step_is_torchs() -> None:
    expected = torch_scales(lambda o: lr_scheduler.StepLR(o, step_size=6, gamma=0.5), 25)
    assert scales(ScheduleSection(name="step", step_every="6 steps", step_factor=0.5), 25) == pytest.approx(expected)


def test_step_counts_epochs_from_the_end_of_warmup_and_stops_at_the_lowest() -> None:
    schedule = ScheduleSection(name="step", warmup_steps=2, step_every="1 epoch", step_factor=0.1, min_lr_ratio=0.05)
    assert scales(schedule, 10, steps_per_epoch=3) == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_cyclic_is_torchs_started_at_the_top() -> None:
    def cyclic(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.CyclicLR(optimizer, base_lr=0.2, max_lr=1.0, step_size_up=4, cycle_momentum=False)

    from_the_top = torch_scales(cyclic, 24)[4:]
    assert scales(ScheduleSection(name="cyclic", cycle_length="8 steps", min_lr_ratio=0.2), 20) == pytest.approx(
        from_the_top
    )


def test_cyclic_with_an_odd_length_never_leaves_its_range() -> None:
    found = scales(ScheduleSection(name="cyclic", cycle_length="5 steps", min_lr_ratio=0.1), 11)
    assert found[0] == found[5] == found[10] == 1.0
    assert all(0.1 <= scale <= 1.0 for scale in found)


@pytest.mark.parametrize(
    ("ratio", "total", "expected"), [(0.0, 10, 0), (0.05, 100, 5), (0.05, 101, 6), (0.07, 100, 7), (0.1, 30, 3)]
)
def test_warmup_ratio_rounds_up(ratio: float, total: int, expected: int) -> None:
    assert num_warmup_steps(ScheduleSection(warmup_ratio=ratio), total) == expected


def test_a_run_that_ends_with_warmup() -> None:
    assert scales(ScheduleSection(name="cosine", warmup_steps=4), 4) == [0.25, 0.5, 0.75, 1.0]
    assert lr_scale(4, ScheduleSection(warmup_steps=4), total_steps=4, steps_per_epoch=1) == 1.0


def test_steps_after_the_end_stay_at_the_lowest() -> None:
    for name in ("cosine", "linear"):
        schedule = ScheduleSection(name=name, min_lr_ratio=0.1)
        assert lr_scale(99, schedule, total_steps=10, steps_per_epoch=1) == pytest.approx(0.1)


def test_ratios_between_groups_never_change() -> None:
    """One scale for all: there is nothing by which a group could differ."""
    schedule = ScheduleSection(name="cosine", warmup_ratio=0.1, min_lr_ratio=0.01)
    base = [1e-3, 5e-5, 2.391e-5]
    for scale in scales(schedule, 50):
        assert [lr * scale / (base[0] * scale) for lr in base] == pytest.approx([1.0, 0.05, 0.02391])
