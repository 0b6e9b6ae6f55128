"""A signal to any rank: all save at the same step and leave with 75; the same command goes on, and says when all is done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REQUEUE = 75


@pytest.mark.parametrize(
    ("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGINT, 0), (signal.SIGUSR1, 1)], ids=["TERM", "INT", "USR1"]
)
def test_a_signal_to_one_rank_stops_all_at_one_step(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], number: signal.Signals, rank: int
) -> None:
    run = experiment("engine=ddp", "checkpoint.save_every=null")
    running = run.start(ranks=2, step_seconds=0.1)
    run.wait_for(lambda: run.step() >= 5, running)
    running.signal(number, rank)
    assert running.wait() == [REQUEUE, REQUEUE], running.output
    step = run.state()["step"]
    assert max(run.steps_on_disk()) == step
    assert run.step() == step, "metrics end where the checkpoint is"
    assert f"stopped by {number.name} at step {step} of 16; a checkpoint was written" in running.output
    assert "Traceback" not in running.output
    if number is signal.SIGTERM:
        output = run.finish(ranks=2)
        assert f"at step {step} of 16" in output
        assert run.metrics() == never_killed("ddp", 2).metrics()


def test_a_file_stops_all_ranks_and_is_taken_away(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any]
) -> None:
    run = experiment("engine=ddp", "checkpoint.save_every=null")
    running = run.start(ranks=2, step_seconds=0.3)
    run.wait_for(lambda: run.step() >= 1, running)
    (run.run_dir / "STOP").touch()
    assert running.wait() == [REQUEUE, REQUEUE], running.output
    assert run.steps_on_disk() == [run.step()]
    assert f"stopped by the file STOP at step {run.step()} of 16" in running.output
    assert not (run.run_dir / "STOP").exists()
    run.finish(ranks=2)
    assert run.metrics() == never_killed("ddp", 2).metrics()


def test_every_start_takes_a_step_in_however_few_hours(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=ddp", "checkpoint.save_every=null", "max_hours=1e-6", "evaluation.evaluate_every=null")
    for step in (1, 2):
        running = run.start(ranks=2)
        assert running.wait() == [REQUEUE, REQUEUE], running.output
        assert run.state()["step"] == run.step() == step
        assert f"stopped by max_hours at step {step} of 16" in running.output


def test_a_second_interrupt_leaves_at_once(experiment: Callable[..., Any]) -> None:
    run = experiment("checkpoint.save_every=null", "evaluation.evaluate_every=null")
    running = run.start(step_seconds=5.0)
    run.wait_for(lambda: run.step() >= 1, running)
    time.sleep(1)  # into the next step: at the end of this one, the first signal alone would stop the run
    for _ in range(2):
        running.signal(signal.SIGINT)
        time.sleep(1)  # two that come before Python looks are one
    assert running.wait(timeout=20) == [130]
    assert run.steps_on_disk() == []


def test_a_finished_run_says_so(experiment: Callable[..., Any]) -> None:
    run = experiment("num_epochs=1")
    run.finish(ranks=2)
    before = {file: file.read_bytes() for file in run.run_dir.rglob("*") if file.is_file() and file.name != "run.log"}
    for ranks in (2, 1):
        output = run.finish(ranks=ranks)
        assert "is complete: 4 of 4 steps. Nothing to do." in output
        after = {
            file: file.read_bytes() for file in run.run_dir.rglob("*") if file.is_file() and file.name != "run.log"
        }
        assert after == before


def test_a_signal_in_the_last_step_ends_as_done(experiment: Callable[..., Any]) -> None:
    run = experiment("num_epochs=1", "evaluation.at_start=false", "evaluation.evaluate_every=null")
    running = run.start(step_seconds=1.5)
    run.wait_for(lambda: run.step() >= 3, running)
    time.sleep(0.1)
    running.signal(signal.SIGTERM)
    assert running.wait() == [0], running.output
    assert run.state()["step"] == 4


def test_two_runs_in_one_folder_are_refused(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any]
) -> None:
    """A launcher that is killed may leave its ranks behind; the job that comes after it must not mix with them."""
    run = experiment("engine=ddp", "data.num_workers=1")
    first = run.start(ranks=2, step_seconds=0.2)
    run.wait_for(lambda: run.step() >= 2, first)
    second = run.start(ranks=2)
    assert second.wait() == [2, 2], second.output
    said = [line.split("): ", 1)[1] for line in second.output.splitlines() if line.startswith("accel-train (rank")]
    assert len(said) == 2 and f"another process is training in run (process {first.pids[0]} on " in said[0]
    assert said[1] == f"on rank 0: {said[0]}"
    assert first.wait() == [0, 0], first.output
    assert run.metrics() == never_killed("ddp", 2).metrics()


def test_workers_leave_with_a_killed_rank(experiment: Callable[..., Any]) -> None:
    run = experiment("data.num_workers=2", "evaluation.at_start=false")
    running = run.start(step_seconds=0.2)
    run.wait_for(lambda: run.step() >= 1, running)
    workers = children_of(running.pids[0])
    assert len(workers) >= 2
    running.kill()
    limit = time.monotonic() + 30
    while time.monotonic() < limit and any(is_alive(pid) for pid in workers):
        time.sleep(0.2)
    assert [pid for pid in workers if is_alive(pid)] == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_to_torchrun_reaches_the_ranks(experiment: Callable[..., Any], number: signal.Signals) -> None:
    """torchrun passes the signal on and returns its own code; the checkpoint is there and the same command goes on."""
    run = experiment("engine=ddp", "num_epochs=10000", "checkpoint.save_every=null", "evaluation.evaluate_every=null")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run.write_config()
    with (run.folder / "torchrun.out").open("w") as output:
        launcher = subprocess.Popen(
            [*command, "-m", "accel_train", "train", "config.yaml", *run.overrides],
            cwd=run.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )
        limit = time.monotonic() + 120
        while run.step() < 2 and launcher.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        launcher.send_signal(number)
        code = launcher.wait(60)
    said = (run.folder / "torchrun.out").read_text()
    assert code == 1, said
    step = run.state()["step"]
    assert f"stopped by {number.name} at step {step}" in said
    assert run.steps_on_disk() == [step]
    assert run.step() == step >= 2
