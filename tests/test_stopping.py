import os
import signal
import subprocess
import sys

import pytest

from accel_train.stopping import SIGNALS, StopRequest


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
