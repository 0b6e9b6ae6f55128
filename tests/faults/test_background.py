"""Checkpoints written while training goes on: killed anywhere, the run ends as if it had saved in the foreground."""

import json
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

CHECK_FAILED = 1
REQUEUE = 75
BACKGROUND = "checkpoint.in_background=true"
SLOW_WRITE = 0.06


def start_and_wait_for_a_write(run: Any, step: int) -> Any:
    """Ranks that train on with nothing but a part of the checkpoint of this step, or a later one, on disk."""
    running = run.start(ranks=2, slow_writes=SLOW_WRITE, step_seconds=0.03)
    run.wait_for(
        lambda: any(int(folder.name[6:14]) >= step for folder in run.checkpoints.glob(".step_*.partial")), running
    )
    return running


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("engine", "steps"), [("ddp", (3, 9)), ("zero2", (6,)), ("fsdp2", (6,))])
def test_killed_while_it_writes_it_ends_as_if_it_had_saved_in_the_foreground(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], engine: str, steps: tuple[int, ...]
) -> None:
    reference = never_killed(engine, 2)
    run = experiment(f"engine={engine}", BACKGROUND)
    draw = random.Random(engine)
    for step in steps:
        running = start_and_wait_for_a_write(run, step)
        time.sleep(draw.uniform(0, 0.4))
        assert -signal.SIGKILL in running.kill()
    run.finish(ranks=2)

    assert run.metrics() == reference.metrics()
    ours, theirs = run.whole_state(), reference.whole_state()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    different = {"about", "files", "sha256"}
    assert {k: v for k, v in run.state().items() if k not in different} == {
        k: v for k, v in reference.state().items() if k not in different
    }
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == sorted(path.name for path in reference.checkpoints.iterdir()), "nothing is left behind"
    sizes = [path.stat().st_size for path in (run.checkpoints / "latest").glob("rank_*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 0.7 * sum(sizes), "both ranks write, about as much"


def test_training_goes_on_meanwhile_and_a_stop_waits_for_both(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any]
) -> None:
    run = experiment("engine=ddp", BACKGROUND, "evaluation.evaluate_every=null", "checkpoint.save_every=5 steps")
    running = run.start(ranks=2, slow_writes=0.5, step_seconds=0.02)
    run.wait_for(lambda: (run.checkpoints / ".step_00000005.partial").exists() and run.step() >= 7, running)
    assert run.steps_on_disk() == [], "two steps were taken while a slow disk has the checkpoint"
    running.signal(signal.SIGTERM, 1)
    assert running.wait() == [REQUEUE, REQUEUE], running.output
    stopped_at = run.state()["step"]
    assert run.steps_on_disk() == [5, stopped_at]
    log = (run.run_dir / "run.log").read_text()
    assert "checkpoint step_00000005: training stood still for" in log
    run.finish(ranks=2)
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    timed = [row for row in rows if "save_seconds" in row]
    assert timed and all(0 < row["save_stall_seconds"] < row["save_seconds"] for row in timed), timed
    assert run.losses() == never_killed("ddp", 2).losses()


def test_a_write_that_fails_in_the_background_stops_every_rank(experiment: Callable[..., Any]) -> None:
    run = experiment("engine=fsdp2", BACKGROUND, "evaluation.evaluate_every=null")
    running = run.start(ranks=2)
    run.wait_for(lambda: 3 in run.steps_on_disk(), running)
    running.kill()
    good = max(run.steps_on_disk())
    output = run.fail(code=CHECK_FAILED, ranks=2, largest_file=20_000)
    messages = [line.split("): ", 1)[1] for line in output.splitlines() if line.startswith("accel-train (rank")]
    assert len(messages) == 2 and len(set(messages)) == 1, messages
    assert "could not write its part: File too large" in messages[0]
    assert f"The last good checkpoint is step_{good:08d}" in messages[0]
    assert list(run.checkpoints.glob(".step_*")) == [], "the torn one is removed"
    assert f"at step {good} of 16" in run.finish(ranks=2)
