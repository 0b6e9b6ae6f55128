"""Signals that are postponed to the end of something short."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from accel_train.interrupts import Terminated, uninterrupted

TWICE = """
import signal
from accel_train.interrupts import uninterrupted
with uninterrupted():
    signal.raise_signal({first})
    print("goes on", flush=True)
    signal.raise_signal({second})
    print("is not reached", flush=True)
"""


def test_ctrl_c_comes_at_the_end() -> None:
    done = []

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]


def test_sigterm_goes_to_who_answered_it_before() -> None:
    def end(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Terminated), uninterrupted():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)


def test_nothing_stays_where_nothing_came() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with uninterrupted():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interrupt_within_an_inner_stretch_waits_for_the_outer_one() -> None:
    done = []

    @uninterrupted()
    def inner() -> None:
        signal.raise_signal(signal.SIGINT)

    @uninterrupted()
    def outer() -> None:
        inner()
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["whole"]


def test_a_thread_leaves_the_signals_alone() -> None:
    """Only the main thread may say what answers them."""
    seen = []

    def work() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)], ids=["INT", "TERM"]
)
def test_a_second_signal_leaves_at_once(first: signal.Signals, second: signal.Signals) -> None:
    code = TWICE.format(first=int(first), second=int(second))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + second, "goes on\n", "")
