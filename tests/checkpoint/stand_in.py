"""Ranks as threads, each with a stand-in for the engine; tests/faults does it with processes and real engines."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from accel_train.checkpoint.state import TrainState, state_of
from accel_train.checkpoint.store import Checkpoints
from accel_train.engine.engine import Engine
from accel_train.engine.shards import Shard
from accel_train.errors import CheckFailed, UserError
from accel_train.optim.param_groups import GroupPlan, ParamGroup
from accel_train.whereabouts import Whereabouts

STATE_NAMES = ("exp_avg",)
ABOUT = {"about": {"config": {"seed": 0}, "dataset_fingerprint": "f"}}
Layout = list[list[tuple[str, int, int]]]
"""For each rank, the pieces (name, start, stop) that it owns."""


class Crash(BaseException):
    """The power goes off."""


class Ranks:
    """What threads that play ranks have in common."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._things: list[Any] = [None] * world_size

    def gather(self, rank: int, thing: Any) -> list[Any]:
        self._things[rank] = thing
        self._barrier.wait()
        everyone = list(self._things)
        self._barrier.wait()
        return everyone

    def run(self, action: Callable[[int], Any]) -> list[Any]:
        """The action's result on every rank, or the exception that it ended with."""

        def outcome(rank: int) -> Any:
            threading.current_thread().name = f"rank {rank}"
            try:
                return action(rank)
            except (UserError, CheckFailed, Crash) as error:
                return error
            except Exception:
                self._barrier.abort()  # so that the other threads don't wait
                raise

        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(outcome, range(self.world_size)))


class StandInEngine:
    """What Checkpoints asks of an engine."""

    def __init__(self, ranks: Ranks, rank: int, tensors: dict[str, Tensor], layout: Layout | None) -> None:
        self.ranks, self.rank, self.world_size, self.is_main = ranks, rank, ranks.world_size, rank == 0
        self.launch = SimpleNamespace(engine="stand-in")
        self.device = torch.device("cpu")
        self.whereabouts = Whereabouts()
        self.storage = {name: {"weight": t.clone(), "exp_avg": t.clone() + 1} for name, t in tensors.items()}
        whole = [(name, 0, tensor.numel()) for name, tensor in tensors.items()]
        self.mine = whole if layout is None else layout[rank]
        self.replicated = layout is None
        self.loaded_updates: list[int] = []
        self.module = nn.BatchNorm1d(3, affine=False)

    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        for name, start, stop in self.mine:
            held = {kind: tensor.view(-1)[start:stop] for kind, tensor in self.storage[name].items()}
            shape = tuple(self.storage[name]["weight"].shape)
            state = {kind: held[kind] for kind in state_names}
            yield Shard(name, shape, start, held["weight"], state, replicated=self.replicated)

    def gather_objects(self, thing: Any) -> list[Any]:
        return self.ranks.gather(self.rank, thing)

    together = Engine.together

    def bare_model(self) -> nn.Module:
        return self.module

    def share_buffers(self) -> None:
        pass

    def finish_loading(self, updates: list[int]) -> None:
        self.loaded_updates = updates


class StandInLog:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.noted: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def note(self, message: str) -> None:
        self.noted.append(message)

    def sync(self) -> None:
        pass


class Run:
    """One run_dir seen by some ranks."""

    def __init__(
        self,
        run_dir: Path,
        tensors: dict[str, Tensor],
        layout: Layout | None = None,
        ranks: int = 1,
        keep_last: int = 2,
        in_background: bool = False,
    ) -> None:
        self.ranks = Ranks(ranks)
        self.engines = [StandInEngine(self.ranks, rank, tensors, layout) for rank in range(ranks)]
        self.logs = [StandInLog() for _ in range(ranks)]
        self.plan = plan_of(tensors)
        self.root = run_dir / "checkpoints"
        self.checkpoints = [
            Checkpoints(
                run_dir,
                engine,  # type: ignore[arg-type]
                log,  # type: ignore[arg-type]
                keep_last=keep_last,
                state_names=STATE_NAMES,
                in_background=in_background,
            )
            for engine, log in zip(self.engines, self.logs, strict=True)
        ]

    def save(self, step: int, **state: Any) -> list[Any]:
        def save(rank: int) -> Path:
            final = self.checkpoints[rank].save(TrainState(step=step, **state), ABOUT)
            self.checkpoints[rank].wait_for_erasure()
            return final

        return self.ranks.run(save)

    def save_and_settle(self, step: int, **state: Any) -> list[Any]:
        def save(rank: int) -> Path:
            final = self.checkpoints[rank].save(TrainState(step=step, **state), ABOUT)
            self.checkpoints[rank].settle()
            self.checkpoints[rank].wait_for_erasure()
            return final

        return self.ranks.run(save)

    def resume(self) -> TrainState | None:
        """What a new start of the command does. Raises what a rank raised."""

        def start(rank: int) -> TrainState | None:
            found = self.checkpoints[rank].newest_valid()
            if found is None:
                return None
            state = state_of(found[1])
            self.checkpoints[rank].load(found[0], state, self.plan)
            self.checkpoints[rank].wait_for_erasure()
            return state

        outcomes = self.ranks.run(start)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        assert all(outcome == outcomes[0] for outcome in outcomes)
        return outcomes[0]  # type: ignore[no-any-return]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir())


def plan_of(tensors: dict[str, Tensor], *, first_step: int = -1) -> GroupPlan:
    """One group of all tensors, whose optimizer state had seen an update before the run."""
    group = ParamGroup("all", "all", 0, 1, tuple(tensors), 0, 0.1, 0.0, None, first_step)
    return GroupPlan([group], [])


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (5, 3), "bias": (4,), "scale": (1,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def saved_run(folder: Path, steps: list[int], keep_last: int = 9, best_step: int | None = None) -> Run:
    run = Run(folder, some_tensors(), keep_last=keep_last)
    for step in steps:
        assert run.save(step, best_step=best_step) == [run.root / f"step_{step:08d}"]
    return run
