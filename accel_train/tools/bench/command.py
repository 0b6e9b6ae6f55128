"""`accel-train bench`: how fast a configuration trains under the present launch, and what of the time is not the model's."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from accel_train.config.schema import RunConfig
from accel_train.tools.bench.checkpoint_costs import bench_checkpoint
from accel_train.tools.bench.figures import median_and_spread
from accel_train.tools.bench.loader_rates import loader_rates
from accel_train.tools.bench.report import show_checkpoint, show_data, show_training
from accel_train.tools.bench.step_rates import FEWEST_STEPS, hold_weights, time_loop, time_steps
from accel_train.tools.bench.training import Length, as_bench, measure_training
from accel_train.tools.rehearsal import rehearsal


def bench(config: RunConfig, length: Length, *, as_json: bool) -> None:
    """Measures training, and prints what was found on rank 0. Nothing is written, and nothing stays."""
    with rehearsal(as_bench(config), quiet=True) as run:
        found = measure_training(run, length)
        if run.engine.is_main:
            if as_json:
                print(json.dumps(asdict(found), indent=1))
            else:
                show_training(found, Console(highlight=False))


def bench_data(config: RunConfig, length: Length, *, as_json: bool) -> None:
    """Measures the loader alone with more and more workers, against the rate of the steps."""
    with rehearsal(as_bench(config), quiet=True) as run:
        hold_weights(run)
        loop = time_loop(run, warmup=length.warmup, steps=FEWEST_STEPS)
        needed = config.data.global_batch_size / median_and_spread(time_steps(run, loop.kept, length.steps))[0]
        found = loader_rates(run, needed)
        if run.engine.is_main:
            if as_json:
                print(json.dumps(asdict(found), indent=1))
            else:
                show_data(found, run.engine.device.type, Console(highlight=False))


def bench_checkpoints(mebibytes: int, folder: str | None, *, as_json: bool) -> None:
    """Measures what a checkpoint costs on the file system of `folder` (default: that of temporary files)."""
    with tempfile.TemporaryDirectory(prefix="accel_train_", dir=folder) as inside:
        costs = bench_checkpoint(Path(inside), mebibytes=mebibytes)
    if as_json:
        print(json.dumps(asdict(costs), indent=1))
    else:
        show_checkpoint(costs, Console(highlight=False))
