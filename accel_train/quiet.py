"""`--quiet`: only results, warnings and errors are said. It holds for the whole command and the processes that it starts."""

import os

VARIABLE = "ACCEL_TRAIN_QUIET"


def is_quiet() -> bool:
    return os.environ.get(VARIABLE, "") not in ("", "0")


def be_quiet() -> None:
    os.environ[VARIABLE] = "1"
