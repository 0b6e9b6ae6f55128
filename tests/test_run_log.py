import errno
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from accel_train.errors import UserError
from accel_train.run_log import RunLog, fitted


def opened(run_dir: Path, step: int = -1) -> RunLog:
    log = RunLog(run_dir, is_main=True, rank=0)
    log.rewind(step)
    return log


def lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_steps(run_dir: Path, steps: list[int]) -> None:
    log = opened(run_dir)
    for step in steps:
        log.metrics(step, "train", {"loss": step / 3})
    log.close()


def test_metrics_are_one_json_object_a_line_with_full_precision(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.metrics(1, "train", {"loss": 0.1 + 0.2, "lr/text": 1e-7})
    log.metrics(1, "valid", {"mean_recall": 1 / 3})
    # Read before the log is closed: a killed run has lost nothing that it said.
    assert lines(tmp_path) == [
        {"step": 1, "split": "train", "loss": 0.1 + 0.2, "lr/text": 1e-7},
        {"step": 1, "split": "valid", "mean_recall": 1 / 3},
    ]
    log.close()


@pytest.mark.parametrize(("step", "kept"), [(-1, []), (0, [0]), (2, [0, 1, 2, 2]), (9, [0, 1, 2, 2, 3])])
def test_rewind_drops_the_lines_of_later_steps(tmp_path: Path, step: int, kept: list[int]) -> None:
    write_steps(tmp_path, [0, 1, 2, 2, 3])
    before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    opened(tmp_path, step).close()
    assert [line["step"] for line in lines(tmp_path)] == kept
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(before[: len(kept)]), "kept lines are the same bytes"


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "split": "tr', '{"step": 3', "{", "3", '"step"', "[1, 2]", '{"split": "train"}', "\0\0\0"]
)
def test_rewind_drops_a_torn_last_line(tmp_path: Path, torn: str) -> None:
    write_steps(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    log = opened(tmp_path, 5)
    log.metrics(3, "train", {})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_rewind_drops_bytes_that_are_not_text(tmp_path: Path) -> None:
    write_steps(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    opened(tmp_path, 5).close()
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_other_ranks_write_no_file_and_print_only_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, is_main=False, rank=3)
    log.rewind(-1)
    log.start_progress(10, 0)
    log.metrics(1, "train", {"loss": 1.0})
    log.say("words")
    log.show(Table(title="a table"))
    log.progress(1, "step 1/10")
    log.sync()
    log.warn("something of its own")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert tuple(capsys.readouterr()) == ("", "rank 3: warning: something of its own\n")


def test_run_log_has_everything_with_the_time_and_grows_over_resumes(tmp_path: Path) -> None:
    for attempt in range(2):
        log = opened(tmp_path)
        log.say(f"attempt {attempt} [with] brackets")
        log.warn(r"look [here] \[there\]")
        log.show(Table("score", title="a table"))
        log.progress(1, "step 1/10")
        log.close()
    text = (tmp_path / "run.log").read_text()
    for line in (
        "attempt 0 [with] brackets",
        "attempt 1 [with] brackets",
        r"warning: look [here] \[there\]",
        "step 1/10",
        "a table",
    ):
        assert line in text
    stamped = [line for line in text.splitlines() if "step 1/10" in line]
    assert all(line[:2] == "20" and line[4] == "-" and line[13] == ":" for line in stamped), stamped


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = opened(tmp_path)
    log.start_progress(10, 0)
    log.progress(1, None)
    log.progress(2, "step 2/10  loss 0.5")
    log.warn("brackets [/stay] as they are")
    log.close()
    assert capsys.readouterr().out == "step 2/10  loss 0.5\nwarning: brackets [/stay] as they are\n"


def test_a_live_bar_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = opened(tmp_path)
    log.console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    log.start_progress(10, 4)
    log.progress(5, "step 5/10  loss 0.5")
    log.progress(6, None)
    log.say("words above the bar")
    log.close()
    text = screen.getvalue()
    assert "4/10" in text, "a resumed run's bar starts where the run is"
    assert "6/10" in text
    assert "loss 0.5" in text
    assert "words above the bar" in text
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back at the end"
    assert "loss 0.5" in (tmp_path / "run.log").read_text()


def test_a_full_disk_ends_no_step_but_the_next_save(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.metrics(1, "train", {"loss": 1.0})
    log.sync()
    with Path("/dev/full").open("w") as full:
        whole, log._metrics = log._metrics, full
        log.metrics(2, "train", {"loss": 1.0})
        log._metrics = whole
        log.metrics(3, "train", {"loss": 1.0})
        with pytest.raises(OSError, match="No space left"):
            log.sync()
        with pytest.raises(OSError, match="No space left"):
            full.close()
    log.close()


def test_a_lost_terminal_does_not_end_training(tmp_path: Path) -> None:
    log = opened(tmp_path)
    with Path("/dev/full").open("w", buffering=1) as gone:
        log.console = Console(file=gone)
        log.say("words")
        log.progress(1, "step 1/2")
        log.show(Table(title="a table"))
        with pytest.raises(OSError, match="No space left"):
            gone.close()
    log.sync()
    log.close()
    assert "words" in (tmp_path / "run.log").read_text()


def test_a_folder_removed_under_the_run_is_made_anew_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    log = opened(run_dir)
    log.metrics(1, "train", {})
    for file in run_dir.iterdir():
        file.unlink()
    run_dir.rmdir()
    log.metrics(2, "train", {})
    log.sync()
    log.metrics(3, "train", {})
    log.close()
    assert [line["step"] for line in lines(run_dir)] == [3]
    assert "was removed while the run was writing" in capsys.readouterr().out
    assert "was removed while the run was writing" in (run_dir / "run.log").read_text()


@pytest.mark.parametrize("is_main", [True, False])
def test_a_run_dir_that_can_not_be_written_is_refused_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(UserError, match=r"run_dir: .*/file/run can't be written: Not a directory"):
        RunLog(occupied / "run", is_main=is_main, rank=0)
    # Root may write anywhere, so what access(2) says of a read-only file system is put in its place.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"run_dir: .*/run can't be written: Permission denied"):
        RunLog(tmp_path / "run", is_main=is_main, rank=0)


def test_a_run_dir_belongs_to_one_process(tmp_path: Path) -> None:
    """Until that process ends, however it ends; then the next one may have it."""
    holder = f"""
import sys
from pathlib import Path
from accel_train.run_log import RunLog
log = RunLog(Path({str(tmp_path)!r}), is_main=True, rank=0)
print("holds it", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"holds it\n"
        with pytest.raises(UserError, match="another process is training in"):
            opened(tmp_path)
        RunLog(tmp_path, is_main=False, rank=1).close()
        other.kill()
    opened(tmp_path).close()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    opened(tmp_path).close()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_readings_below_the_bar_break_between_two_of_them(width: int) -> None:
    parts = ["epoch 0", "loss 4.7458", "grad_norm 0.54", "temperature 0.0705", "238.4 samples/s", "waiting for data 0%"]
    lines = fitted(parts, width)
    assert "  ".join(lines) == "  ".join(parts)
    assert all(len(line) <= width for line in lines)
    assert fitted([""], width) == [""]
