"""Rates after a rollback, which checkpoints it leaves behind, and its file."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from accel_train.checkpoint.rollbacks import (
    ROLLBACKS_FILE,
    Rollback,
    is_abandoned,
    lr_reduction,
    read_rollbacks,
    write_rollbacks,
)
from accel_train.checkpoint.state import TrainState, num_updates, state_of
from accel_train.errors import UserError
from tests.checkpoint.stand_in import Run, some_tensors

FIRST = Rollback(at=10, to=6, until=9, lr_factor=0.5)
SECOND = Rollback(at=9, to=8, until=12, lr_factor=0.1)


def test_rates_are_lower_from_the_checkpoint_on_and_windows_multiply() -> None:
    factors = [lr_reduction(step, [FIRST, SECOND]) for step in range(5, 13)]
    assert factors == pytest.approx([1.0, 0.5, 0.5, 0.05, 0.1, 0.1, 0.1, 1.0])
    assert lr_reduction(7, []) == 1.0


@pytest.mark.parametrize(
    ("step", "known", "abandoned"),
    [
        (6, 0, False),  # what the run went back to
        (3, 0, False),
        (9, 0, True),  # saved in the bad row
        (9, 1, True),  # saved after the first rollback, and behind what the second one went back to
        (8, 1, False),
        (8, 0, True),  # of the first attempt, although the second rollback went back to a later step
        (20, 2, False),
    ],
)
def test_which_checkpoints_count(step: int, known: int, abandoned: bool) -> None:
    assert is_abandoned({"step": step, "rollbacks": [None] * known}, [FIRST, SECOND]) is abandoned


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert read_rollbacks(tmp_path) == []
    write_rollbacks(tmp_path, [FIRST])
    write_rollbacks(tmp_path, [FIRST, SECOND])
    assert read_rollbacks(tmp_path) == [FIRST, SECOND]
    assert [path.name for path in tmp_path.iterdir()] == [ROLLBACKS_FILE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"rollbacks": 3}',
        '{"rollbacks": [{"at": 3}]}',
        '{"rollbacks": [[3]]}',
        '{"rollbacks": [{"at": "3", "to": 1, "until": 2, "lr_factor": 0.5}]}',
        "[" * 100_000,
    ],
)
def test_a_file_that_was_changed_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / ROLLBACKS_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="can't be read"):
        read_rollbacks(tmp_path)


def test_skipped_steps_are_no_updates() -> None:
    assert num_updates(10, 0, [3, 4, 10]) == 7
    assert num_updates(10, 3, [3, 4, 10]) == 5  # the step 3 was before the state was empty
    assert num_updates(10, -5, [3]) == 14
    assert num_updates(3, 0, [1, 2, 3]) == 0
    assert TrainState(step=10, skipped=[2]).updates_since(1) == 8


def test_the_state_of_a_checkpoint_has_its_rollbacks() -> None:
    state = TrainState(step=7, skipped=[2, 5], rollbacks=[FIRST])
    assert state_of(json.loads(json.dumps(asdict(state)))) == state


def test_the_last_good_checkpoint_outlives_a_bad_row_and_then_takes_its_place(tmp_path: Path) -> None:
    run = Run(tmp_path, some_tensors(), ranks=2, keep_last=1)
    for step, in_a_row in [(3, 0), (6, 0), (7, 1), (8, 2)]:
        run.save(step, skipped_in_a_row=in_a_row)
    folders = ["step_00000006", "step_00000007", "step_00000008"]
    assert run.names() == ["latest", *folders]

    def go_back(rank: int) -> str:
        found = run.checkpoints[rank].newest_valid(lambda saved: saved["skipped_in_a_row"] == 0)
        assert found is not None
        run.checkpoints[rank].load(found[0], state_of(found[1]), run.plan)
        return found[0].name

    assert run.ranks.run(go_back) == ["step_00000006"] * 2
    assert run.names() == ["latest", "step_00000006"]
    assert (run.root / "latest").resolve().name == "step_00000006"
