"""`python -m tests.benchmarks.cached_memory CONFIG [overrides]`: how much memory a step takes, in bytes, on stdout.

The most that torch's allocator held at once during the second step, above what it held before: weights, optimizer state and
the global batch lie in memory by then.
"""

import sys
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile

from accel_train.config.load import load_config
from accel_train.progress import Meter
from accel_train.tools.bench.training import as_bench
from accel_train.tools.rehearsal import rehearsal
from accel_train.train import global_batches, one_step


def main(config_path: str, *overrides: str) -> None:
    with rehearsal(as_bench(load_config(config_path, list(overrides))), quiet=True) as run:
        batches = global_batches(run)
        batch = next(batches)
        batches.close()
        meter = Meter(run.engine.device)
        one_step(run, batch, meter)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            one_step(run, batch, meter)
        events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
        sizes = sorted(
            (event.start_ns(), place, event.nbytes())
            for place, event in enumerate(events)
            if event.name() == "[memory]"
        )
        print(max(accumulate(size for _, _, size in sizes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
