"""`--quiet`: only results, warnings and errors are said. It holds for the whole command and the processes that it starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "ACCEL_TRAIN_QUIET"


def is_quiet() -> bool:
    return os.environ.get(VARIABLE, "") not in ("", "0")


def be_quiet() -> None:
    os.environ[VARIABLE] = "1"


@contextmanager
def as_before() -> Iterator[None]:
    """What was asked for inside ends here: the next command in this process is asked anew."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
