import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from accel_train import stopping
from accel_train.stopping import (
    SIGNALS,
    SPARE_SECONDS,
    UNSEEN_SAVE_SECONDS,
    StopRequest,
    in_words,
    seconds_left_of_slurm_job,
)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_interrupts_nothing(number: signal.Signals) -> None:
    stop = StopRequest()
    with stop.listening():
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number


def test_the_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest().listening():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_schedulers_may_repeat_themselves() -> None:
    """Slurm signals every process of a job, and torchrun passes its own copy on."""
    stop = StopRequest()
    with stop.listening():
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert stop.signal is signal.SIGINT


def test_a_second_interrupt_leaves_at_once_with_130() -> None:
    script = """
import os, signal
from accel_train.stopping import StopRequest
stop = StopRequest()
with stop.listening():
    os.kill(os.getpid(), signal.SIGINT)
    print(stop.signal.name, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "SIGINT\n"), done.stderr


def test_a_second_interrupt_ends_what_was_started() -> None:
    script = """
import os, signal, subprocess
from accel_train.stopping import StopRequest
stop = StopRequest()
with stop.listening(), subprocess.Popen(["sleep", "100"], start_new_session=True) as child:
    stop.started.update({child.pid, 2**22 + 1})
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
"""
    # The output is at its end when the child, too, has closed it.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 130, done.stderr


class Clock:
    """A stand-in for the module `time`, which a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    monkeypatch.setattr(stopping, "process_age", lambda: 100.0)
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    return clock


def steps_until_stop(stop: StopRequest, clock: Clock, *, step: float, save: float = 0.0, save_every: int = 10) -> int:
    """Takes steps of so many seconds, and saves, until there is a reason to stop; returns how many were taken."""
    for taken in range(100_000):
        if stop.reason():
            return taken
        clock.now += step
        if save and (taken + 1) % save_every == 0:
            with stop.saving():
                clock.now += save
    raise AssertionError("never asked to stop")


def test_max_hours_leaves_time_for_a_step_and_a_save(clock: Clock, tmp_path: Path) -> None:
    """An hour from the start of the process, of which 100 s are over: saves take 200 s and steps 7 s."""
    stop = StopRequest()
    (said,) = stop.watch(tmp_path, max_hours=1.0)
    assert said.startswith("max_hours: this start ends by ")
    deadline = clock.now + 3500
    steps_until_stop(stop, clock, step=7, save=200)
    assert in_words(stop.reason()) == "max_hours"
    left = deadline - clock.now
    assert 200 <= left <= 7 + 200 + SPARE_SECONDS + 200, "late enough, and the last save still ends before the hour"


def test_before_a_save_was_seen_one_is_thought_to_take_a_minute(clock: Clock, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.watch(tmp_path, max_hours=1.0)
    deadline = clock.now + 3500
    steps_until_stop(stop, clock, step=1)
    assert UNSEEN_SAVE_SECONDS + SPARE_SECONDS - 1 <= deadline - clock.now <= UNSEEN_SAVE_SECONDS + SPARE_SECONDS + 2


def test_the_time_of_saves_is_no_part_of_the_time_of_steps(clock: Clock, tmp_path: Path) -> None:
    """Counted twice, a save of 600 s would end this run 600 s too early."""
    stop = StopRequest()
    stop.watch(tmp_path, max_hours=2.0)
    deadline = clock.now + 7100
    steps_until_stop(stop, clock, step=1, save=600, save_every=1000)
    assert 600 <= deadline - clock.now <= 600 + SPARE_SECONDS + 2


def test_every_start_takes_a_step_however_little_time_there_is(clock: Clock, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.watch(tmp_path, max_hours=1e-6)
    assert steps_until_stop(stop, clock, step=1) == 1


def test_nothing_asks_a_run_without_limits(clock: Clock, tmp_path: Path) -> None:
    stop = StopRequest()
    assert stop.watch(tmp_path, None) == []
    for _ in range(100):
        clock.now += 1e6
        assert stop.reason() == 0


def test_a_file_asks_and_is_taken_away(clock: Clock, tmp_path: Path) -> None:
    stop = StopRequest()
    other_rank = StopRequest()
    stop.watch(tmp_path, None)
    assert stop.reason() == 0
    (tmp_path / "STOP").touch()
    clock.now += 1
    assert in_words(stop.reason()) == "the file STOP"
    assert other_rank.reason() == 0, "one rank looks, and tells the others"
    stop.remove_file()
    assert not (tmp_path / "STOP").exists()
    clock.now += 1
    assert stop.reason() == 0


def test_a_file_from_before_the_start_counts(clock: Clock, tmp_path: Path) -> None:
    """A batch script leaves it while the ranks still import."""
    (tmp_path / "STOP").touch()
    stop = StopRequest()
    stop.watch(tmp_path, None)
    assert in_words(stop.reason()) == "the file STOP"


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """squeue(answer): puts a program of this name on the path, which gives the answer and keeps its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def answer(text: str) -> None:
        (folder / "squeue").write_text(f'#!/bin/sh\necho "$@" > {folder}/arguments\n{text}\n')
        (folder / "squeue").chmod(0o755)

    return answer


def in_seconds(seconds: float) -> str:
    return f"{datetime.fromtimestamp(time.time() + seconds):%Y-%m-%dT%H:%M:%S}"


@pytest.mark.parametrize(
    ("answer", "in_environment", "left"),
    [
        (lambda: f"echo {in_seconds(3600)}", None, 3600),
        (lambda: "echo NONE", None, math.inf),
        (lambda: "exit 1", None, math.inf),
        (lambda: "exit 1", 500, 500),
        (lambda: f"echo {in_seconds(3600)}", 500, 3600),
    ],
    ids=["asked", "no limit", "no answer", "from the environment", "asked rather than from the environment"],
)
def test_the_end_of_a_slurm_job(
    squeue: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[], str],
    in_environment: int | None,
    left: float,
) -> None:
    squeue(answer())
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    if in_environment is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + in_environment))
    found = seconds_left_of_slurm_job()
    assert found == left or left - 60 < found <= left + 1


def test_an_array_task_asks_for_itself(
    squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The number of the last task is that of the whole array."""
    squeue(f"echo {in_seconds(60)}")
    for name, value in (("SLURM_JOB_ID", "20"), ("SLURM_ARRAY_JOB_ID", "20"), ("SLURM_ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(name, value)
    assert seconds_left_of_slurm_job() <= 61
    assert (tmp_path / "bin" / "arguments").read_text() == "-h -j 20_3 -o %e\n"


def test_outside_of_slurm_no_job_ends(squeue: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(f"echo {in_seconds(60)}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert seconds_left_of_slurm_job() == math.inf


def test_a_job_that_was_given_more_time_goes_on(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1000.0, 1000.0, 50.0, 50.0])
    monkeypatch.setattr(stopping, "seconds_left_of_slurm_job", lambda: next(answers))
    stop = StopRequest()
    (said,) = stop.watch(tmp_path, None)
    assert "this Slurm job ends at" in said
    taken = steps_until_stop(stop, clock, step=10)
    assert in_words(stop.reason()) == "the end of the Slurm job"
    assert 180 <= taken <= 200, "1000 s, and when they were nearly over 1000 s more"


def test_the_age_of_a_process_counts_from_its_start() -> None:
    script = "import time; time.sleep(0.5); from accel_train.stopping import process_age; print(process_age())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert 0.5 <= float(done.stdout) < 30
