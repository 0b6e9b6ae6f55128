"""Which towers train from which step to which, and at what rates."""

import math
from typing import Any

import pytest
from torch import nn

from accel_train.config.schema import RunConfig
from accel_train.errors import UserError
from accel_train.phases import Phase, phase_at, plan_phase_groups, plan_phases

TOWERS = [
    {"name": "body", "layers": [r"^layers\.(\d+)\."], "lr": 0.1, "train_last": 1},
    {"name": "head", "layers": [r"^head\."], "lr": 0.2},
]
UNFREEZE = {"name": "more", "start": "10 steps", "towers": [{"name": "body", "train_last": 2}]}
ALL = {
    "name": "all",
    "start": "2 epochs",
    "towers": [{"name": "body", "train_last": "all", "lr": 0.01}, {"name": "head", "lr": 0.0}],
    "schedule": {"name": "linear", "warmup_steps": 4},
}
STEPS_PER_EPOCH = 16
TOTAL_STEPS = 60


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 1)


def phases_of(*sections: dict[str, Any]) -> list[Phase]:
    config = RunConfig.model_validate(
        {
            "run_dir": "run",
            "task": "some.where:Task",
            "data": {"path": "data", "global_batch_size": 4, "micro_batch_size": 4},
            "optimizer": {"towers": TOWERS},
            "schedule": {"name": "cosine", "warmup_steps": 2},
            "max_steps": TOTAL_STEPS,
            "phases": list(sections),
        }
    )
    return plan_phases(config, steps_per_epoch=STEPS_PER_EPOCH, total_steps=TOTAL_STEPS)


def test_a_run_without_phases_has_one() -> None:
    (phase,) = phases_of()
    assert (phase.start, phase.end, phase.schedule_start, phase.schedule_end) == (0, 60, 0, 60)


def test_phases_cover_the_run_and_change_towers_one_after_the_other() -> None:
    first, more, everything = phases_of(UNFREEZE, ALL)
    assert [(phase.name, phase.start, phase.end) for phase in (first, more, everything)] == [
        ("first", 0, 10),
        ("more", 10, 32),
        ("all", 32, 60),
    ]
    body, head = more.optimizer.towers
    assert (body.lr, body.train_last, head.lr) == (0.1, 2, 0.2), "what is left out stays"
    body, head = everything.optimizer.towers
    assert (body.lr, body.train_last, head.lr) == (0.01, None, 0.0)
    assert [phase_at([first, more, everything], step).name for step in (0, 9, 10, 31, 32, 59, 60)] == [
        *("first", "first", "more", "more", "all", "all", "all")
    ]


def test_a_schedule_goes_on_until_a_phase_brings_its_own() -> None:
    first, more, everything = phases_of(UNFREEZE, ALL)
    # Cosine from step 2 to 32, over the first two phases; then warmup from 32 to 36 and a line down to 60.
    assert first.lr_scale(0) == 0.5
    assert more.lr_scale(17) == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 30)))
    assert everything.lr_scale(32) == 0.25
    assert everything.lr_scale(36) == 1.0
    assert everything.lr_scale(48) == pytest.approx(1 - 12 / 24)


def test_parameters_that_join_later_are_groups_of_their_own() -> None:
    model = Model()
    phases = phases_of(UNFREEZE, ALL)
    plans = [plan_phase_groups(model, phases, phase) for phase in phases]
    found = [[(group.name, group.first_step, group.param_names[0]) for group in plan.groups] for plan in plans]
    assert found[0] == [("body", 0, "layers.2.weight"), ("head", 0, "head.weight")]
    assert found[1] == [
        ("body", 0, "layers.2.weight"),
        ("body.since_10", 10, "layers.1.weight"),
        ("head", 0, "head.weight"),
    ]
    assert found[2] == [
        ("body", 0, "layers.2.weight"),
        ("body.since_10", 10, "layers.1.weight"),
        ("body.since_32", 32, "layers.0.weight"),
    ]
    assert plans[2].frozen == ("head.weight", "head.bias")


def test_what_was_frozen_in_between_begins_anew() -> None:
    freeze = {"name": "rest", "start": "5 steps", "towers": [{"name": "head", "lr": 0.0}]}
    again = {"name": "again", "start": "9 steps", "towers": [{"name": "head", "lr": 0.1}]}
    phases = phases_of(freeze, again)
    plan = plan_phase_groups(Model(), phases, phases[2])
    assert [(group.name, group.first_step) for group in plan.groups] == [("body", 0), ("head", 9)]


def test_optimizer_state_from_another_run_is_older_than_the_run() -> None:
    phases = phases_of(UNFREEZE)
    carried = {"layers.2.weight": 40, "layers.2.bias": 40}
    plan = plan_phase_groups(Model(), phases, phases[1], carried)
    assert [(group.name, group.first_step) for group in plan.groups] == [
        ("body", -40),
        ("body.since_10", 10),
        ("head", 0),
    ]


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (["60 steps"], "phases.p0.start: 60 steps is step 60; it must come after step 0"),
        (["10 steps", "10 steps"], "phases.p1.start: 10 steps is step 10; it must come after step 10"),
        (["1 epoch", "15 steps"], "phases.p1.start: 15 steps is step 15; it must come after step 16"),
    ],
)
def test_phases_in_the_wrong_order(starts: list[str], message: str) -> None:
    sections = [{"name": f"p{i}", "start": start, "schedule": {}} for i, start in enumerate(starts)]
    with pytest.raises(UserError, match=message):
        phases_of(*sections)
