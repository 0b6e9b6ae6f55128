"""Ctrl-C and SIGTERM in commands other than `train`, which stops between two steps (`stopping.py`)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it was writing is removed."""


@contextmanager
def ending_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated inside. In a thread, which no signal's exception reaches, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Postpones Ctrl-C and SIGTERM to the end of something short. A second one leaves at once.

    For operations on fake tensors: torch's C++ calls Python for each, and for each storage that it frees, and an exception
    out of a signal there is lost or aborts the process.
    """
    if threading.current_thread() is not threading.main_thread():  # which no signal's exception reaches
        yield
        return
    waiting: list[int] = []

    def postpone(number: int, frame: FrameType | None) -> None:
        if waiting:
            os._exit(128 + number)
        waiting.append(number)

    before = {number: signal.signal(number, postpone) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)
        for late in waiting:
            signal.raise_signal(late)
