"""`python -m accel_train` and `accelerate launch -m accel_train`."""

from accel_train.cli import run

run()
