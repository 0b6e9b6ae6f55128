"""`python -m tests.benchmarks.cached_memory CONFIG [overrides]`: how much memory the first step takes, in bytes, on stdout.

Of the process's own memory, what lies above that before the step, when weights, optimizer state and the batch are there.
"""

import sys

from accel_train.config.load import load_config
from accel_train.progress import Meter
from accel_train.tools.bench.checkpoint_costs import extra_memory
from accel_train.tools.bench.command import as_bench
from accel_train.tools.rehearsal import Snapshot, rehearsal
from accel_train.train import global_batches, one_step


def main(config_path: str, *overrides: str) -> None:
    with rehearsal(as_bench(load_config(config_path, list(overrides))), quiet=True) as run:
        Snapshot.of(run)  # makes the optimizer's state
        batches = global_batches(run)
        batch = next(batches)
        batches.close()
        with extra_memory() as extra:
            one_step(run, batch, Meter(run.engine.device))
        print(extra[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
