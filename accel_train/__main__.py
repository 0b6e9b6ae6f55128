"""`python -m accel_train` and `accelerate launch -m accel_train`."""

import sys

from accel_train.cli import main

sys.exit(main())
