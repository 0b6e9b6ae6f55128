"""accel_train on a configuration: run_ours.py TIMES CONFIG"""

import sys

from timed import time_steps

from accel_train.cli import run

time_steps(sys.argv[1])
sys.argv[1:] = ["train", sys.argv[2]]
sys.exit(run())
