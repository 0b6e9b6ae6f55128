"""The loader alone: how fast it reads while nothing trains, and how many workers are enough for the steps to never wait."""

import math
import os
import time
from contextlib import closing
from dataclasses import dataclass

from accel_train.data.loader import train_steps
from accel_train.run import Run
from accel_train.tools.bench.step_rates import FEWEST_STEPS, together
from accel_train.tools.row_progress import RowProgress

SECONDS = 1.5
"""The shortest time over which a loader is measured."""
TRIED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of workers on each rank."""
MARGIN = 1.1
"""Enough is a tenth more than is needed: loaders are not even."""


@dataclass(frozen=True, slots=True)
class LoaderRates:
    needed: float
    """Samples/s that the steps take, of all ranks together, with batches that lie in memory."""
    rates: dict[int, float]
    """Samples/s of all ranks' loaders together while nothing trains, by the number of workers on each rank."""
    configured: int
    """data.num_workers."""
    enough: int | None
    """The fewest workers on each rank that were measured to be enough. None: as many as there are CPUs are not."""
    estimate: int | None
    """Where `enough` is None: how many it would take, if more CPUs went on adding as much each."""
    cpus: int
    """Of each rank."""


def loader_rates(run: Run, needed: float) -> LoaderRates:
    """Measures more and more workers until they are enough or there is one for each CPU. All ranks call it together."""
    cpus = cpus_of_a_rank(run)
    configured = run.config.data.num_workers
    rates: dict[int, float] = {}
    for workers in (count for count in TRIED if count <= cpus):
        rates[workers] = loader_rate(run, workers)
        if rates[workers] >= MARGIN * needed:
            break
    if configured not in rates:
        rates[configured] = loader_rate(run, configured)
    enough = min((workers for workers, rate in rates.items() if rate >= MARGIN * needed), default=None)
    by_worker = max(rate / max(1, workers) for workers, rate in rates.items())
    estimate = None if enough is not None else math.ceil(MARGIN * needed / by_worker)
    return LoaderRates(needed, dict(sorted(rates.items())), configured, enough, estimate, cpus)


def cpus_of_a_rank(run: Run) -> int:
    """CPUs that this host's ranks have, divided by their number; the fewest of any rank."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", run.engine.world_size))
    return min(run.engine.gather_objects(max(1, len(os.sched_getaffinity(0)) // local)))


def loader_rate(run: Run, num_workers: int) -> float:
    """Samples/s of all ranks' loaders together, read as training reads them and thrown away.

    The clock starts when what the workers had prepared ahead is used up.
    """
    config, engine = run.config, run.engine
    data = config.data.model_copy(update={"num_workers": num_workers})
    per_step = -(-config.data.global_batch_size // (config.data.micro_batch_size * engine.world_size))
    ahead = 1 + -(-num_workers * config.data.prefetch_batches // per_step)
    steps = train_steps(
        run.dataset,
        run.order,
        data,
        rank=engine.rank,
        world_size=engine.world_size,
        first_step=run.state.step,
        last_step=run.total_steps,
        seed=config.seed,
        pin_memory=engine.device.type == "cuda",
    )
    what = f"loader alone, {num_workers} worker{'s' * (num_workers != 1)}"
    with (
        closing(steps),
        RowProgress(what, None, shown=engine.is_main, unit="steps") as progress,  # until the time is over
    ):
        for _ in range(ahead):
            next(steps)
            progress.advance(1)
        together(engine)
        start, rows, taken = time.perf_counter(), 0, 0
        while taken < FEWEST_STEPS or time.perf_counter() - start < SECONDS:
            rows += sum(len(part["sample_id"]) for part in next(steps).micro_batches)
            taken += 1
            progress.advance(1)
        rate = rows / (time.perf_counter() - start)
    return sum(engine.gather_objects(rate))
