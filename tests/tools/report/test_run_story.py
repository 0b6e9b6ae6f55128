"""What run.log tells."""

from pathlib import Path

import pytest

from accel_train.tools.report.run_story import read_story
from tests.tools.report.conftest import story


def test_starts_steps_and_time_left(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(story(last=50, ending=""))
    found = read_story(tmp_path / "run.log")
    assert (found.step, found.total_steps, len(found.starts)) == (50, 100, 1)
    assert found.seconds == 100
    assert found.seconds_left == pytest.approx(100)


def test_time_between_two_starts_is_no_training_time(tmp_path: Path) -> None:
    log = (
        "2026-03-01 10:00:00 engine ddp (DataParallel) on 1 x cpu, fp32\n"
        "2026-03-01 10:01:00 step 10/40  epoch 0  loss 1\n"
        "2026-03-02 09:00:00 engine ddp (DataParallel) on 1 x cpu, fp32\n"
        "2026-03-02 09:00:01 resuming from run/checkpoints/step_00000008 at step 8 of 40\n"
        "2026-03-02 09:00:31 step 10/40  epoch 0  loss 1\n"
    )
    (tmp_path / "run.log").write_text(log)
    found = read_story(tmp_path / "run.log")
    assert found.seconds == 91
    assert [(event.kind, event.step) for event in found.events] == [("resumed", 8)]
    assert (found.starts[1].first_step, found.starts[1].last_step) == (8, 10)
    assert found.seconds_left is None, "one log step has no pace"


LINES = [
    ("warning: step 7 is skipped by all ranks (1 in a row): the gradient", "skipped", 7),
    (
        "going back to run/checkpoints/step_00000004 after step 9; learning rates are multiplied by 0.5",
        "rolled back",
        9,
    ),
    ("phase heads begins at step 12", "phase", 12),
    ("warning: step 3: skipped a sample that can't be read: x", "warning", 3),
    ("warning: something else", "warning", 100),
    ("advice: the gradient is large", "advice", 100),
    ("changed since the checkpoint: max_steps was 3, is 9", "changed", 100),
    ("ended, stopped: stopped by SIGTERM at step 42 of 100; a checkpoint was written", "stopped", 42),
    ("ended, failed: step 9: the gradient of 2 of 3 groups is not finite", "ended", 100),
    ("stopping early: accuracy has not risen in 3 evaluations.", "done", 100),
]


@pytest.mark.parametrize(("text", "kind", "step"), LINES, ids=[line[1] for line in LINES])
def test_each_kind_of_line(tmp_path: Path, text: str, kind: str, step: int) -> None:
    (tmp_path / "run.log").write_text(story(f"2026-03-01 10:04:00 {text}", ending=""))
    (event,) = read_story(tmp_path / "run.log").events
    assert (event.kind, event.step, event.text) == (kind, step, text)


def test_other_lines_and_no_log_at_all_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_bytes(b"2026-13-99 99:99:99 step 1/2  x\n\xff\xfe\nstep 1/2  \n")
    assert read_story(tmp_path / "run.log").step == 0
    assert read_story(tmp_path / "none").events == []
