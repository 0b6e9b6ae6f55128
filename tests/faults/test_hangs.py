"""A rank that is stuck, stopped or gone: all ranks end within the time that hang_minutes gives, and say where they were."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

SECONDS = 3.0
"""hang_minutes here. Ranks look at each other for a quarter of it beyond."""
LIMIT = f"hang_minutes={SECONDS / 60}"


def test_a_stuck_rank_is_named_by_the_others(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any]
) -> None:
    run = experiment("engine=ddp", LIMIT)
    began = time.monotonic()
    running = run.start("--inject", "hang:rank=1@8", ranks=2)
    assert running.wait(timeout=40) == [1, 1], running.output
    assert SECONDS < time.monotonic() - began < 6 * SECONDS
    log = (run.run_dir / "run.log").read_text()
    for said in (running.output, log):
        assert "nothing has moved for 0.05 minutes (hang_minutes), so the job is ended." in said
        assert "waits at step 7, agreeing on a step, in the collective exchange" in said
        assert "In a collective: rank 0. Not there: rank 1." in said
    assert "before_step" in (run.run_dir / "hang_rank_00001.txt").read_text(), "the stack shows where rank 1 sleeps"
    assert "all_gather" in (run.run_dir / "hang_rank_00000.txt").read_text()
    run.overrides.remove(LIMIT)
    run.finish(ranks=2)
    assert run.metrics() == never_killed("ddp", 2).metrics()
    assert not (run.run_dir / ".ranks").exists()


def test_a_stopped_rank_is_silent(experiment: Callable[..., Any]) -> None:
    run = experiment(LIMIT, "num_epochs=1000", "evaluation.evaluate_every=null")
    running = run.start(ranks=2)
    run.wait_for(lambda: run.step() >= 4, running)
    running.signal(signal.SIGSTOP, 0)
    run.wait_for(lambda: not running.running, running)
    running.signal(signal.SIGKILL, 0)
    assert running.wait() == [-signal.SIGKILL, 1]
    assert "silent, so gone or stopped; last seen at step" in running.output
    assert "In a collective: rank 1. Not there: rank 0." in (run.run_dir / "run.log").read_text()


def test_slow_ranks_and_ones_that_were_stopped_for_a_while_go_on(experiment: Callable[..., Any]) -> None:
    run = experiment(f"hang_minutes={2.4 / 60}", "num_epochs=1")
    running = run.start("--inject", "slow:rank=1:1s", ranks=2)
    run.wait_for(lambda: run.step() >= 1, running)
    running.signal(signal.SIGSTOP)
    time.sleep(4)
    running.signal(signal.SIGCONT)
    assert running.wait() == [0, 0], running.output
    assert not list(run.run_dir.glob("hang_*"))


def test_without_a_limit_it_waits(experiment: Callable[..., Any]) -> None:
    run = experiment("hang_minutes=null")
    running = run.start("--inject", "hang:rank=0@2")
    run.wait_for(lambda: run.step() >= 1, running)
    time.sleep(1)
    assert running.running
    running.kill()


def test_one_process_alone_is_watched_too(experiment: Callable[..., Any]) -> None:
    run = experiment(f"hang_minutes={1 / 60}")
    running = run.start("--inject", "hang:rank=0@5")
    assert running.wait(timeout=30) == [1]
    assert "The one rank: step 4, waiting" in running.output or "The one rank: step 4, agreeing" in running.output


@pytest.mark.parametrize("workers", [1])
def test_a_dead_loader_process_ends_all_ranks_with_one_message(experiment: Callable[..., Any], workers: int) -> None:
    run = experiment(f"data.num_workers={workers}", "checkpoint.save_every=3 steps")
    output = run.fail("--inject", "kill-worker:rank=1@5", code=1, ranks=2)
    assert output.count("A loader process ended without a word") == 2
    assert "(rank 0 of 2): on rank 1: A loader process" in output
    assert "A loader process" in (run.run_dir / "run.log").read_text()
    assert run.steps_on_disk() == [3]


def test_a_killed_rank_is_named_as_lost(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=ddp")
    running = run.start("--inject", "kill:rank=1@5", ranks=2)
    assert running.wait() == [1, -signal.SIGKILL]
    assert "Traceback" not in running.output
    assert "rank 0 lost its connection to another rank at step 4, agreeing on a step" in running.output
    assert json.loads((run.checkpoints / "latest" / "state.json").read_text())["step"] == 3
