"""What a checkpoint costs, as ratios of one run on one machine: against a raw write, and in the background against the loop.

The model is a stack of layers whose weights and AdamW state have the size asked for; the engine, the files and the syncing
are those of training. Each round measures every way once, so that a disk that gets slower hits all of them.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_train.checkpoint.pieces import CHUNK
from accel_train.checkpoint.state import TrainState
from accel_train.checkpoint.store import Checkpoints
from accel_train.config.schema import DataSection, OptimizerSection, RunConfig, Tower
from accel_train.engine.build import build_engine
from accel_train.engine.engine import Engine
from accel_train.optim.param_groups import GroupPlan, ParamGroup
from accel_train.run_log import RunLog
from accel_train.tools.bench.figures import Figure, median_and_spread

WIDTH = 1024
ROWS = 64
"""Of a batch, for the steps beside a save in the background."""
STATE_NAMES = ("exp_avg", "exp_avg_sq")
ABOUT: dict[str, Any] = {"about": {}, "first_steps": {}}


@dataclass(frozen=True, slots=True)
class CheckpointCosts:
    """The best of the rounds after the first, in which memory and files are new: what else a machine does only adds."""

    mebibytes: float
    """Size of the checkpoint."""
    raw_write_seconds: float
    """Writing as many bytes into one file, and syncing it."""
    save_seconds: float
    save_to_raw_write: float
    save_to_raw_write_spread: float
    """Half the distance between the quartiles of this ratio in each round; so for the other."""
    background_stall_seconds: float
    background_stall_to_save: float
    """How long training stands still for a save in the background, as a share of a save in the foreground."""
    background_stall_to_save_spread: float
    background_slows_to_save: float
    """Stall, and what the steps meanwhile take longer: they share cores and memory with the thread that writes."""
    background_slows_to_save_spread: float
    background_to_save: float
    """How long it takes until it is on disk."""
    load_seconds: float
    load_memory_to_size: float
    """Memory that loading takes beside the model and its optimizer state, as a share of the checkpoint."""

    def figures(self) -> list[Figure]:
        """For `make bench`."""
        size = f"{self.mebibytes:.0f} MiB of weights and AdamW state, best of the rounds"
        return [
            Figure(
                "checkpoint/save_to_raw_write",
                self.save_to_raw_write,
                self.save_to_raw_write_spread,
                goal=1.2,
                how=f"{size}; a synchronous save over writing the same bytes from memory and syncing them",
                better="lower",
            ),
            Figure(
                "checkpoint/background_stall_to_save",
                self.background_stall_to_save,
                self.background_stall_to_save_spread,
                goal=0.1,
                how=f"{size}; the time that training stands still for a save in the background over a synchronous save",
                better="lower",
            ),
            Figure(
                "checkpoint/background_slows_to_save",
                self.background_slows_to_save,
                self.background_slows_to_save_spread,
                goal=None,
                how=f"{size}; that time, and what steps take longer meanwhile, over a synchronous save",
                better="lower",
            ),
            Figure(
                "checkpoint/load_memory_to_size",
                self.load_memory_to_size,
                0.0,
                goal=0.25,
                how=f"{size}; memory that loading takes beside model and optimizer state, over the checkpoint's size",
                better="lower",
            ),
        ]


def bench_checkpoint(folder: Path, *, mebibytes: int = 512, rounds: int = 4) -> CheckpointCosts:
    """Measures in `folder`, on the file system that it lies on, and leaves two checkpoints there. One process."""
    config = _config(folder)
    engine = build_engine(config)
    log = RunLog(folder, is_main=True, rank=0)
    log.rewind(-1)
    taken = _Rounds()
    try:
        plan = _prepare(engine, num_layers=max(1, round(mebibytes * 2**20 / (3 * 4 * WIDTH**2))))
        foreground, background = (
            Checkpoints(
                folder / name, engine, log, keep_last=1, state_names=STATE_NAMES, in_background=name == "background"
            )
            for name in ("foreground", "background")
        )
        step_seconds = min(_seconds(lambda: _compute_gradients(engine)) for _ in range(3))
        for step in range(1, rounds + 2):
            taken.saves.append(_seconds(lambda step=step: foreground.save(TrainState(step), ABOUT)))  # type: ignore[misc]
            foreground.wait_for_erasure()
            latest = (folder / "foreground" / "checkpoints" / "latest").resolve()
            taken.raw.append(_raw_write(next(latest.glob("rank_*.safetensors")), folder / "raw"))
            stalled, total, slowed = _save_beside_steps(engine, background, step, step_seconds)
            taken.stalls.append(stalled)
            taken.totals.append(total)
            taken.slowed.append(slowed)
        with extra_memory() as extra:
            load_seconds = _seconds(lambda: foreground.load(latest, TrainState(rounds + 1), plan))
        foreground.close()
        background.close()
        size = next(latest.glob("rank_*.safetensors")).stat().st_size
    finally:
        log.close()
        engine.close()
    return taken.costs(size, load_seconds, extra[0])


@dataclass(slots=True)
class _Rounds:
    """Seconds of every way in each round."""

    raw: list[float] = field(default_factory=list)
    saves: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    slowed: list[float] = field(default_factory=list)

    def costs(self, size: int, load_seconds: float, load_memory: int) -> CheckpointCosts:
        raw, saves, stalls, slowed = self.raw[1:], self.saves[1:], self.stalls[1:], self.slowed[1:]
        return CheckpointCosts(
            mebibytes=size / 2**20,
            raw_write_seconds=min(raw),
            save_seconds=min(saves),
            save_to_raw_write=min(saves) / min(raw),
            save_to_raw_write_spread=_spread(saves, raw),
            background_stall_seconds=min(stalls),
            background_stall_to_save=min(stalls) / min(saves),
            background_stall_to_save_spread=_spread(stalls, saves),
            background_slows_to_save=min(slowed) / min(saves),
            background_slows_to_save_spread=_spread(slowed, saves),
            background_to_save=min(self.totals[1:]) / min(saves),
            load_seconds=load_seconds,
            load_memory_to_size=load_memory / size,
        )


def _save_beside_steps(
    engine: Engine, checkpoints: Checkpoints, step: int, step_seconds: float
) -> tuple[float, float, float]:
    """Seconds for which training stood still, until the checkpoint was on disk, and that the steps meanwhile took longer."""
    began, num_steps = time.perf_counter(), 0
    checkpoints.save(TrainState(step), ABOUT)
    while not checkpoints.is_written:
        _compute_gradients(engine)
        checkpoints.wait_for_copy()
        num_steps += 1
    checkpoints.settle()
    ended = time.perf_counter()
    checkpoints.wait_for_erasure()
    seconds = checkpoints.new_seconds()
    slowed = max(0.0, ended - began - num_steps * step_seconds)
    return seconds["save_stall_seconds"], seconds["save_seconds"], slowed


def _compute_gradients(engine: Engine) -> None:
    """All of a step but its update: the weights stand still."""
    loss = engine.model(torch.ones(ROWS, WIDTH, device=engine.device)).square().mean()
    engine.backward(loss)
    engine.discard_gradients()


def _spread(over: list[float], under: list[float]) -> float:
    return median_and_spread([a / b for a, b in zip(over, under, strict=True)])[1]


def _config(folder: Path) -> RunConfig:
    return RunConfig(
        run_dir=str(folder),
        max_steps=1,
        data=DataSection(path="none", global_batch_size=1, micro_batch_size=1),
        optimizer=OptimizerSection(towers=[Tower(name="all", layers=[".*"], lr=0.0)]),
    )


def _prepare(engine: Engine, num_layers: int) -> GroupPlan:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(num_layers)))
    groups = [{"params": list(model.parameters()), "name": "all", "base_lr": 0.0, "max_grad_norm": None}]
    engine.prepare(model, torch.optim.AdamW(groups, lr=0.0), precision="fp32", block_classes={"Linear"})
    names = tuple(name for name, _ in model.named_parameters())
    return GroupPlan([ParamGroup("all", "all", 0, 1, names, 0, 0.0, 0.0, None, 0)], [])


def _raw_write(source: Path, path: Path) -> float:
    """Seconds for a new file of the same bytes as `source`, written in order from memory and synced."""
    content = memoryview(source.read_bytes())
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    with path.open("wb") as file:
        for place in range(0, len(content), CHUNK):
            file.write(content[place : place + CHUNK])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@contextmanager
def extra_memory() -> Iterator[list[int]]:
    """Bytes by which this process's own memory, without the pages of files, was larger at most than at the start."""
    before, most, ended = _own_memory(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            most[0] = max(most[0], _own_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield most
    ended.set()
    watcher.join()


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024
