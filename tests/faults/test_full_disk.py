"""Promise 6: a write that fails stops every rank with one message, and the last good checkpoint survives."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECK_FAILED = 1
BAD_CONFIGURATION = 2


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_stopped_cleanly(run: Any, output: str, ranks: int, reason: str, last_good: str) -> None:
    for rank in range(ranks):
        assert f"rank {rank} of {ranks}" in output
    messages = [line.split("): ", 1)[1] for line in output.splitlines() if line.startswith("accel-train (rank")]
    assert len(messages) == ranks and len(set(messages)) == 1, messages
    assert reason in messages[0]
    assert f"The last good checkpoint is {last_good}" in messages[0]
    assert list(run.checkpoints.glob(".step_*")) == [], "the torn one is removed"


@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_a_write_that_fails_and_the_run_after_it(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], engine: str
) -> None:
    """A limit on the size of files makes the system refuse the checkpoint, as a full disk or a quota does."""
    run = experiment(f"engine={engine}")
    running = run.start(ranks=2)
    run.wait_for(lambda: 3 in run.steps_on_disk(), running)
    running.kill()
    resumed_at = max(run.steps_on_disk())
    before = contents(run.checkpoints)
    limit = max(len(content) for file, content in before.items() if file.suffix == ".safetensors") // 2
    output = run.fail(code=CHECK_FAILED, ranks=2, largest_file=limit)
    last_good = f"step_{resumed_at:08d}"
    assert_stopped_cleanly(run, output, 2, "could not write its part", last_good)
    assert "File too large" in output
    assert {file: content for file, content in contents(run.checkpoints).items() if file in before} == before
    assert f"at step {resumed_at} of 16" in run.finish(ranks=2)
    assert run.metrics() == never_killed(engine, 2).metrics()


@pytest.mark.parametrize("spare", [0, 40_000], ids=["no byte left", "room for the log alone"])
def test_a_disk_that_fills_up(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], mount: Callable[..., None], spare: int
) -> None:
    run = experiment("engine=ddp")
    mount(run.run_dir, "size=1m")
    running = run.start(ranks=2, step_seconds=0.1)
    run.wait_for(lambda: run.step() >= 4, running)
    free = os.statvfs(run.run_dir)
    (run.run_dir / "filler").write_bytes(b"x" * max(0, free.f_bavail * free.f_bsize - spare))
    assert running.wait() == [CHECK_FAILED] * 2, running.output
    assert "Traceback" not in running.output
    reason = "could not write its part" if spare else "rank 0 could not write the log: No space left on device"
    assert_stopped_cleanly(run, running.output, 2, reason, "step_00000003")
    (run.run_dir / "filler").unlink()
    assert "at step 3 of 16" in run.finish(ranks=2)
    assert run.metrics() == never_killed("ddp", 2).metrics()


def test_a_run_dir_that_can_not_be_written(experiment: Callable[..., Any], mount: Callable[..., None]) -> None:
    run = experiment()
    if os.geteuid() == 0:
        mount(run.run_dir, "ro")
    else:
        run.run_dir.mkdir(mode=0o500)
    output = run.fail(code=BAD_CONFIGURATION, ranks=2)
    assert "run_dir: run can't be written: Read-only file system" in output or "Permission denied" in output


def test_a_run_dir_removed_under_the_run(experiment: Callable[..., Any]) -> None:
    """What the run still knows is saved, and what is lost is said."""
    run = experiment("engine=ddp")
    running = run.start(ranks=2, step_seconds=0.1)
    run.wait_for(lambda: run.step() >= 4, running)
    shutil.rmtree(run.run_dir)
    assert running.wait() == [0, 0], running.output
    assert "was removed while the run was writing to it; earlier lines are lost" in running.output
    assert run.state()["step"] == 16
    assert [row["step"] for row in run.metrics() if row["split"] == "train"][-8:] == list(range(9, 17))


def test_a_checkpoint_removed_while_it_is_written(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=ddp")
    running = run.start(ranks=2, slow_writes=0.1)
    run.wait_for(lambda: (run.checkpoints / ".step_00000006.partial").exists(), running)
    time.sleep(0.02)
    shutil.rmtree(run.checkpoints / ".step_00000006.partial", ignore_errors=True)
    assert running.wait() == [CHECK_FAILED] * 2, running.output
    assert "Traceback" not in running.output
    assert_stopped_cleanly(run, running.output, 2, "No such file or directory", "step_00000003")
    assert run.steps_on_disk() == [3]
