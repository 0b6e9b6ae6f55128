"""How long a step takes, from what a dry run counted and how fast this host was measured to be."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from accel_train.errors import UserError
from accel_train.tasks.task import Task
from accel_train.tools.calibration.record import Calibration, Curve, Rates, seconds_at
from accel_train.tools.dry_run.counting import Work
from accel_train.tools.dry_run.step import DryStep
from accel_train.tools.plan.traffic import Collective, traffic

UPDATE_PASSES = 9
"""Times that an update goes over a weight's size in memory: reads of weight, gradient and two moments, writes of three, and
the gradient once for its norm and once to clear it."""
SAMPLES_TO_READ = 16
ELEMENTWISE = ("plain", "dear")


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step on one rank, by part; they add up."""

    parts: dict[str, float]
    flops: int
    """Floating-point operations of one step on one rank, of matrix products, convolutions and attention."""
    num_operations: int

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def step_time(dry: DryStep, calibration: Calibration, rates: Rates, *, on_gpu: bool) -> StepTime:
    """Without the time that a step waits for data. Raises UserError where something needed was not measured."""
    phases = phase_seconds(dry, rates)
    parts = {
        "forward": sum(seconds for phase, seconds in phases.items() if phase.startswith("forward")),
        "backward": phases.get("backward", 0.0),
        "loss": phases.get("loss", 0.0),
        "communication": _communication(dry, calibration, phases, on_gpu=on_gpu),
        "optimizer": optimizer_seconds(dry, rates),
    }
    flops = sum(work.size * number for work, number in repeated(dry).items() if work.kind not in ELEMENTWISE)
    return StepTime(parts, round(flops), round(sum(repeated(dry).values())))


def repeated(dry: DryStep) -> dict[Work, float]:
    """The operations of a whole step: the micro-batches and blocks that the dry run left out are as the others."""
    num, simulated = dry.split.num_micro_batches, dry.num_simulated
    kept = dry.split.kept_graphs
    blocks = dry.num_blocks / dry.num_simulated_blocks
    times = {"forward": float(kept), "loss": blocks, "backward": num / simulated, "setup": 0.0, "optimizer": 0.0}
    if not dry.compares_whole_batch:
        times |= {"forward": num / simulated, "loss": num / simulated}
    again = (num - kept) / max(1, simulated - 1)
    return {work: count * times.get(work.phase, again) for work, count in dry.counted.work.items()}


def phase_seconds(dry: DryStep, rates: Rates) -> dict[str, float]:
    """Seconds of every phase of one step."""
    found: dict[str, float] = {}
    for work, number in repeated(dry).items():
        found[work.phase] = found.get(work.phase, 0.0) + number * rates.seconds_of(work)
    return found


def optimizer_seconds(dry: DryStep, rates: Rates) -> float:
    """An update is bound by memory: its passes over this rank's part of what trains, and a little for each tensor."""
    own = dry.sizes.trained_weights / (1 if dry.split.engine == "ddp" else dry.split.world_size)
    each = UPDATE_PASSES * own / dry.sizes.num_tensors
    return dry.sizes.num_tensors * seconds_at(rates.curves["plain"], each)


def _communication(dry: DryStep, calibration: Calibration, phases: Mapping[str, float], *, on_gpu: bool) -> float:
    """On a CPU nothing is hidden: the cores that would send are those that compute."""
    ranks = dry.split.world_size
    if ranks == 1:
        return 0.0
    curves = calibration.collectives.get(str(ranks))
    if curves is None:
        raise UserError(
            f"no communication between {ranks} ranks was measured on this host. `torchrun --nproc-per-node {ranks} -m "
            "accel_train bench CONFIG --calibrate` does it."
        )
    total = 0.0
    for what, seconds in by_what(traffic(dry), lambda one: _collective_seconds(one, curves, ranks)).items():
        hidden = hiding_time(what[1], phases, dry) if on_gpu else 0.0
        total += max(0.0, seconds - hidden)
    return total


def by_what(
    collectives: list[Collective], seconds_of: Callable[[Collective], float]
) -> dict[tuple[str, str | None], float]:
    """Seconds by (what is sent, what hides it)."""
    found: dict[tuple[str, str | None], float] = {}
    for one in collectives:
        key = one.what, one.hidden_by
        found[key] = found.get(key, 0.0) + one.count * seconds_of(one)
    return found


def _collective_seconds(one: Collective, curves: Mapping[str, Curve], ranks: int) -> float:
    if one.kind == "send":  # one of the hops of an all-gather
        return seconds_at(curves["all_gather"], one.num_bytes * ranks) / (ranks - 1)
    if one.kind == "reduce_scatter":  # half of what an all-reduce does
        return seconds_at(curves["all_reduce"], one.num_bytes) / 2
    return seconds_at(curves[one.kind], one.num_bytes)


def hiding_time(hidden_by: str | None, phases: Mapping[str, float], dry: DryStep) -> float:
    """For how long a GPU computes while a collective is on its way."""
    backward = phases.get("backward", 0.0)
    if hidden_by is None:
        return 0.0
    if hidden_by == "loss":
        return phases.get("loss", 0.0)
    if hidden_by == "backward, last":
        return backward / dry.split.num_micro_batches
    if hidden_by == "backward":
        return backward
    return backward + sum(seconds for phase, seconds in phases.items() if phase.startswith("forward"))


def with_data(
    step: StepTime, dry: DryStep, seconds_per_sample: float, num_workers: int, num_cpus: int | None
) -> StepTime:
    """Adds what a step waits for its samples. `num_cpus`: cores that ranks and loaders share, None where they don't."""
    samples = dry.split.num_micro_batches * dry.split.micro_batch_size
    reading, computing = samples * seconds_per_sample, step.seconds
    if num_workers == 0:
        waiting = reading
    else:
        waiting = max(0.0, reading / num_workers - computing)
        if num_cpus is not None:
            waiting = max(waiting, (computing + reading) * dry.split.world_size / num_cpus - computing)
    return StepTime(step.parts | {"waiting for data": waiting}, step.flops, step.num_operations)


def seconds_per_sample(task: Task) -> float:
    """Reads a few samples of the training split, with their augmentation."""
    dataset = task.build_dataset(task.config.data.train_split)
    rows = range(0, len(dataset), max(1, len(dataset) // SAMPLES_TO_READ))[:SAMPLES_TO_READ]
    dataset.read(rows[0], 0)  # opens files
    start = time.perf_counter()
    for row in rows:
        dataset.read(row, 0)
    return (time.perf_counter() - start) / len(rows)
