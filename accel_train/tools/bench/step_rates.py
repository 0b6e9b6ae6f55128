"""The run's own steps, timed: with the loader as configured, and with batches that lie in memory, in turns with others."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch

from accel_train.data.loader import Step
from accel_train.data.padding import join, padding_of
from accel_train.engine.engine import Engine
from accel_train.errors import UserError
from accel_train.progress import Meter
from accel_train.run import Run
from accel_train.tools.bench.bare_loop import BareLoop
from accel_train.tools.bench.figures import in_turns, median_and_spread
from accel_train.tools.row_progress import RowProgress
from accel_train.train import global_batches, one_step

KEPT = 4
"""Global batches that are kept in memory for what needs no loader."""
FEWEST_STEPS = 3
BLOCK_SECONDS = 0.4
"""The shortest time that is compared with another: shorter ones are noise."""


@dataclass(slots=True)
class LoopTimes:
    """Of steps with the configured loader, after the warm-up."""

    seconds: list[float]
    """Of each step; on a GPU each ends when its gradient norms are known."""
    waiting: float
    """Share of the time spent waiting for data."""
    kept: list[Step]
    """The last global batches of full size, without a sample that could not be read on any rank."""


def hold_weights(run: Run) -> None:
    """Sets every learning rate to 0: the same work, and weights that stand still however long it takes."""
    for group in run.engine.optimizer.param_groups:
        group["base_lr"] = 0.0


def time_loop(run: Run, *, warmup: int, steps: int) -> LoopTimes:
    """Takes the steps that training would take, loader and all that is logged included."""
    logged, waits = Meter(run.engine.device), Meter(run.engine.device)
    seconds: list[float] = []
    kept: list[Step] = []
    with (
        RowProgress("training steps", warmup + steps, done=0, shown=run.engine.is_main, unit="steps") as progress,
        closing(global_batches(run)) as batches,
    ):
        before = time.perf_counter()
        for batch in waits.waiting_for(batches):
            one_step(run, batch, logged)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            if is_full(run, batch):
                kept = [*kept, batch][-KEPT:]
            progress.advance(1)
            if len(seconds) == warmup:
                wait_for_device(run.engine)
                waits.restart()
                before = time.perf_counter()
            if len(seconds) == warmup + steps:
                break
        wait_for_device(run.engine)
        waiting = waits.read()["waiting_for_data"]
    if not kept:
        raise UserError("bench: every global batch holds samples that can't be read. Import the dataset again.")
    return LoopTimes(seconds[warmup:], waiting, kept)


def is_full(run: Run, batch: Step) -> bool:
    """Whether all ranks have equally many rows, none left out."""
    rows = [sum(len(part["sample_id"]) for part in batch.micro_batches), len(batch.unreadable)]
    return all(
        row == [run.config.data.global_batch_size // run.engine.world_size, 0] for row in run.engine.exchange(rows)
    )


def at_once(run: Run, batch: Step) -> Step:
    """The same global batch, with this rank's share as one micro-batch."""
    whole = join(batch.micro_batches, padding_of(run.dataset))
    return Step(batch.step, batch.epoch, [whole], batch.positions[:1], [])


def time_steps(run: Run, kept: list[Step], steps: int) -> list[float]:
    """Seconds of each of so many steps with batches that lie in memory."""
    meter, seconds = Meter(run.engine.device), []
    for number in range(steps + 1):
        start = time.perf_counter()
        one_step(run, kept[number % len(kept)], meter)
        wait_for_device(run.engine)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


@dataclass(slots=True)
class Turns:
    """Seconds of a step in each round, by way: `loop`, `whole` (the batch at once), and `bare`."""

    seconds: dict[str, list[float]]
    steps_per_round: int
    missing: str = ""
    """Why a way was left out."""

    def ratio(self, over: str, under: str) -> tuple[float, float]:
        """Median and spread over the rounds of one way's time over another's."""
        return median_and_spread([a / b for a, b in zip(self.seconds[over], self.seconds[under], strict=True)])


def time_in_turns(run: Run, kept: list[Step], *, rounds: int, step_seconds: float) -> Turns:
    """The loop, the loop with each rank's share at once, and a bare PyTorch loop, on the same batches in memory.

    Every way takes some steps in each round. A share that does not fit into a GPU's memory at once leaves the ways out that
    need it.
    """
    engine = run.engine
    wholes = [at_once(run, batch) for batch in kept]
    meter = Meter(engine.device)
    num_steps = engine.gather_objects(max(1, math.ceil(BLOCK_SECONDS / step_seconds)))[0]

    def ours(batches: list[Step]) -> Callable[[], None]:
        def steps() -> None:
            for number in range(num_steps):
                one_step(run, batches[number % len(batches)], meter)

        return steps

    ways: dict[str, Callable[[], object]] = {"loop": ours(kept)}
    missing = ""
    try:
        if len(kept[0].micro_batches) > 1:
            ways["whole"] = ours(wholes)
            ways["whole"]()
        ways["bare"] = bare_steps(run, wholes, num_steps)
        ways["bare"]()
    except torch.OutOfMemoryError:
        missing = "a rank's share at once does not fit into the device's memory"
    if any(engine.gather_objects(missing)):
        ways = {"loop": ways["loop"]}
        torch.cuda.empty_cache()
    with RowProgress("in turns: " + ", ".join(ways), rounds, done=0, shown=engine.is_main, unit="rounds") as progress:
        seconds = in_turns(
            ways, rounds=rounds, settle=lambda: together(engine), after_round=lambda: progress.advance(1)
        )
    per_step = {name: [value / num_steps for value in values] for name, values in seconds.items()}
    return Turns(per_step, num_steps, missing)


def bare_steps(run: Run, wholes: list[Step], num_steps: int) -> Callable[[], None]:
    """Steps of a bare PyTorch loop with a model and an optimizer of its own."""
    bare = BareLoop(run)
    batches = [(step.micro_batches[0], bare.columns_for_loss(step.micro_batches[0])) for step in wholes]

    def steps() -> None:
        for number in range(num_steps):
            bare.step(*batches[number % len(batches)])

    return steps


def together(engine: Engine) -> None:
    """The device has done all work, and every rank has come here."""
    wait_for_device(engine)
    engine.exchange([0])


def wait_for_device(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
