"""Promise 3 at moments that nobody chose: a run killed at random times, and started again, is the same bit for bit.

Chosen moments, on every engine, are in test_injected_faults.py.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

SAVE_SECONDS = 0.4
"""A save takes about this long where every fsync and rename takes SLOW_WRITE."""
SLOW_WRITE = 0.04


def kill_after_step(experiment: Any, ranks: int, step: int, draw: random.Random) -> list[int]:
    """Somewhere within or after a step, on all ranks."""
    running = experiment.start(ranks=ranks)
    experiment.wait_for(lambda: experiment.step() >= step, running)
    time.sleep(draw.uniform(0, 0.1))
    return running.kill()


def kill_in_a_write(experiment: Any, ranks: int, step: int, draw: random.Random) -> list[int]:
    """Between any two changes of a save: while it writes, publishes, sets links, or prunes."""
    running = start_and_wait_for_a_write(experiment, ranks, step)
    time.sleep(draw.uniform(0, SAVE_SECONDS))
    return running.kill()


def start_and_wait_for_a_write(experiment: Any, ranks: int, step: int) -> Any:
    running = experiment.start(ranks=ranks, slow_writes=SLOW_WRITE)
    experiment.wait_for(
        lambda: any(int(folder.name[6:14]) >= step for folder in experiment.checkpoints.glob(".step_*.partial")),
        running,
    )
    return running


def kill_while_it_starts(experiment: Any, ranks: int, step: int, draw: random.Random) -> list[int]:
    """As soon as a resume says so: while it tidies up and rewinds the metrics."""
    log = experiment.run_dir / "run.log"
    before = log.read_text().count("resuming from")
    running = experiment.start(ranks=ranks, slow_writes=SLOW_WRITE / 4)
    resumes = experiment.wait_for(lambda: log.read_text().count("resuming from") > before, running)
    assert resumes, f"it didn't resume: {running.output}"
    time.sleep(draw.uniform(0, 0.05))
    return running.kill()


KILLS: list[tuple[Callable[..., list[int]], int]] = [
    (kill_after_step, 1),
    (kill_in_a_write, 6),
    (kill_while_it_starts, 0),
    (kill_in_a_write, 9),
    (kill_after_step, 13),
]
"""What is killed, and from which step on: before the first checkpoint, in the middle of epochs of 4 steps, at the end.

The first kill in a write spares the first checkpoint (step 3), so that the start after it resumes.
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 2), ("zero3", 2), ("fsdp2", 2)])
def test_killed_five_times_it_ends_as_if_it_had_never_been(
    experiment: Callable[..., Any], never_killed: Callable[[str, int], Any], engine: str, ranks: int
) -> None:
    reference = never_killed(engine, ranks)
    killed = experiment(f"engine={engine}", "data.num_workers=1" if engine == "fsdp2" else "data.num_workers=0")
    draw = random.Random(f"{engine} {ranks}")
    resumed_from = []
    for kill, step in KILLS:
        codes = kill(killed, ranks, step, draw)
        assert -signal.SIGKILL in codes, f"{kill.__name__} at step {step} came too late: {codes}"
        resumed_from.append(max(killed.steps_on_disk(), default=0))
    output = killed.finish(ranks=ranks)

    assert resumed_from == sorted(resumed_from)
    assert f"at step {resumed_from[-1]} of 16" in output
    assert killed.metrics() == reference.metrics()
    ours, theirs = killed.whole_state(), reference.whole_state()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    different = {"about", "files", "sha256"}  # folder names, and the hashes of what names them
    assert {k: v for k, v in killed.state().items() if k not in different} == {
        k: v for k, v in reference.state().items() if k not in different
    }
    names = sorted(path.name for path in killed.checkpoints.iterdir())
    assert names == sorted(path.name for path in reference.checkpoints.iterdir()), "nothing is left behind"
    for link in ("latest", "best"):
        assert os.readlink(killed.checkpoints / link) == os.readlink(reference.checkpoints / link)
