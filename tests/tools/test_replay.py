"""How a replay is judged against the run's report, and from which checkpoint it goes. tests/faults replays real steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from accel_train.checkpoint.rollbacks import Rollback
from accel_train.errors import CheckFailed, UserError
from accel_train.nonfinite import report_path
from accel_train.tools.replay import checkpoint_before, judge, read_report
from tests.checkpoint.stand_in import Run, some_tensors

ROLLBACK = Rollback(at=10, to=6, until=9, lr_factor=0.5)


def a_report(**changes: Any) -> dict[str, Any]:
    first = {"where": "forward", "module": "text.layer.0", "kind": "Linear", "sample_ids": [4, 5]}
    return {"first": first, "losses": {"info_nce": "nan"}, "sample_ids": [[[4, 5], [1]]], "rollbacks": 0, **changes}


def test_the_same_on_other_ranks_is_the_same() -> None:
    judge(a_report(), a_report(sample_ids=[[[1]], [[5, 4]]]))
    judge(None, None)
    judge(a_report(), None)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            None,
            "the run had a forward of text.layer.0 (Linear) that is not finite, samples 4, 5, and here the step is finite",
        ),
        (a_report(sample_ids=[[[4, 5], [2]]]), "took other samples"),
        (a_report(first={"where": "loss", "module": None, "kind": None, "sample_ids": []}), "here it is a loss that"),
    ],
)
def test_what_differs_is_said(found: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(CheckFailed) as failure:
        judge(found, a_report())
    assert said in str(failure.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps(a_report(sample_ids=3)), json.dumps(a_report(rollbacks="1"))]
)
def test_a_report_that_is_none(text: str, tmp_path: Path) -> None:
    path = report_path(tmp_path, 5)
    assert read_report(tmp_path, 5) is None
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is not a report of a step"):
        read_report(tmp_path, 5)


@pytest.mark.parametrize(
    ("step", "rollbacks", "expected"),
    [
        (10, [], 9),  # the first attempt, with the checkpoint of the bad row
        (9, [], 6),  # what is saved after the step is no start for it
        (8, [ROLLBACK], 6),  # the second attempt
        (20, [ROLLBACK], 12),
        (4, [ROLLBACK], 3),
        (3, [], None),
    ],
)
def test_the_checkpoint_that_led_to_the_step(
    step: int, rollbacks: list[Rollback], expected: int | None, tmp_path: Path
) -> None:
    run = Run(tmp_path, some_tensors(), keep_last=9)
    for saved, known in [(3, []), (6, []), (9, []), (12, [ROLLBACK])]:
        run.save(saved, rollbacks=known)
    found = checkpoint_before(tmp_path, step, rollbacks)
    assert (found and int(found.name[5:])) == expected
