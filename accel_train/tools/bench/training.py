"""What `bench` finds of training: everything in one run on one machine, and times that are compared taken in turns."""

from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from accel_train.config.schema import RunConfig, ScheduleSection
from accel_train.data.loader import Step
from accel_train.progress import Meter, peak_memory_gib
from accel_train.run import Run
from accel_train.tools.bench.bare_loop import plain_model
from accel_train.tools.bench.figures import machine_facts, median_and_spread
from accel_train.tools.bench.flops import device_peak, model_flops_per_row
from accel_train.tools.bench.loader_rates import loader_rate
from accel_train.tools.bench.step_rates import Turns, hold_weights, time_in_turns, time_loop
from accel_train.tools.profile.recording import communication_shares, record
from accel_train.train import one_step

RECORDED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Length:
    """How much is measured."""

    warmup: int
    """Steps before the clock starts."""
    steps: int
    """Steps with the loader."""
    rounds: int
    """In which the loop, and what it is compared with, take turns."""


@dataclass(frozen=True, slots=True)
class Training:
    """What `bench` finds of training. Ratios are (median, spread over rounds)."""

    engine: str
    world_size: int
    device: str
    precision: str
    global_batch_size: int
    micro_batches: int
    """On each rank."""
    samples_per_second: float
    """Of all ranks together, by the median step with the configured loader."""
    samples_per_second_spread: float
    step_seconds: float
    waiting_for_data: float
    """Share of the time, the most of any rank."""
    read_ahead: int
    """Micro-batches that each rank's loader reads while a step computes; 0 where it reads in the loop."""
    loader_samples_per_second: float
    """Of all ranks' loaders together, while nothing trains."""
    model_flops_per_sample: float
    mfu: float
    peak: str
    """What the utilisation is a share of."""
    peak_memory_gib: list[float]
    """By rank: of the device, or of the whole process on a CPU."""
    memory_shortages: int
    """How often the device had no room left for the allocator in these steps, the most of any rank. Each time it waits for
    the device and gives back all that it had cached."""
    communication: float
    """Share of a step in which data was under way between ranks, the most of any rank."""
    communication_exposed: float
    """Share of a step in which it was, and nothing was computed meanwhile."""
    to_bare_loop: tuple[float, float] | None
    """Samples/s over those of a bare PyTorch loop, both with batches in memory and each rank's share at once."""
    to_whole_batch: tuple[float, float] | None
    """Time of a step in micro-batches over that of the same global batch with each rank's share at once. None: it is one."""
    not_compared: str
    """Why not, where a GPU's memory does not hold a rank's share at once."""
    machine: dict[str, Any]


def as_bench(config: RunConfig) -> RunConfig:
    """The configuration without an end, and with one phase."""
    return config.model_copy(
        update={
            "max_steps": 10**9,
            "num_epochs": None,
            "max_hours": None,
            "phases": [],
            "schedule": ScheduleSection(name="constant"),
        }
    )


def measure_training(run: Run, length: Length) -> Training:
    """Everything but the loader's need of workers and the checkpoints. All ranks call it together."""
    engine, config = run.engine, run.config
    hold_weights(run)
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    shortages = memory_shortages(engine.device)
    loop = time_loop(run, warmup=length.warmup, steps=length.steps)
    shortages = max(engine.gather_objects(memory_shortages(engine.device) - shortages))
    memory = engine.gather_objects(peak_memory_gib(engine.device))
    loader = loader_rate(run, config.data.num_workers)
    step_seconds, _ = median_and_spread(loop.seconds)
    communication = communication_of(run, loop.kept[0]) if engine.world_size > 1 else (0.0, 0.0)
    turns = time_in_turns(run, loop.kept, rounds=length.rounds, step_seconds=step_seconds)
    model = plain_model(run)
    batches = [engine.to_device(batch.micro_batches[0]) for batch in loop.kept]
    flops = mean(model_flops_per_row(run.task, model, batch) for batch in batches)
    engine.exchange([0])  # all ranks measure their peak at once, as they train
    peak = device_peak(engine.device, config.precision)
    rate = [config.data.global_batch_size / seconds for seconds in loop.seconds]
    samples_per_second, spread = median_and_spread(rate)
    peaks = engine.gather_objects(peak.flops_per_second)
    return Training(
        engine=engine.launch.engine,
        world_size=engine.world_size,
        device=engine.device.type,
        precision=config.precision,
        global_batch_size=config.data.global_batch_size,
        micro_batches=len(loop.kept[0].micro_batches),
        samples_per_second=samples_per_second,
        samples_per_second_spread=spread,
        step_seconds=step_seconds,
        waiting_for_data=max(engine.gather_objects(loop.waiting)),
        read_ahead=config.data.num_workers * config.data.prefetch_batches,
        loader_samples_per_second=loader,
        model_flops_per_sample=flops,
        mfu=flops * samples_per_second / sum(peaks),
        peak=peak.source,
        peak_memory_gib=memory,
        memory_shortages=shortages,
        communication=max(share for share, _ in engine.gather_objects(communication)),
        communication_exposed=max(share for _, share in engine.gather_objects(communication)),
        to_bare_loop=against_bare(turns),
        to_whole_batch=turns.ratio("loop", "whole") if "whole" in turns.seconds else None,
        not_compared=turns.missing,
        machine=machine_facts(),
    )


def memory_shortages(device: torch.device) -> int:
    """How often torch's allocator has found no room on the device."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else 0


def communication_of(run: Run, batch: Step) -> tuple[float, float]:
    """Shares of a step, see `communication_shares`."""
    meter = Meter(run.engine.device)
    one_step(run, batch, meter)
    return communication_shares(record(run.engine, lambda: one_step(run, batch, meter), RECORDED_STEPS))


def against_bare(turns: Turns) -> tuple[float, float] | None:
    """Samples/s over those of the bare loop, with each rank's share at once in both."""
    if "bare" not in turns.seconds:
        return None
    return turns.ratio("bare", "whole" if "whole" in turns.seconds else "loop")
