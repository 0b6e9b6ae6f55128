"""`accel-train`, `python -m accel_train` and `accelerate launch -m accel_train`."""

import sys


def run() -> None:
    """The program; an interrupt is quiet before it is there to answer one."""
    try:
        from accel_train.cli import run as program
    except KeyboardInterrupt:
        sys.exit(130)
    program()


if __name__ == "__main__":
    run()
