"""Faults of trainers, built into ours on purpose for `verify` to find: each is what a widespread tool does, or did."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

import accel_train.gradients
import accel_train.step
import accel_train.tools.verify.launched
from accel_train.data import loader
from accel_train.data.order import Order, rank_share
from accel_train.engine.engine import Engine
from accel_train.engine.plain import TorchOptimizerEngine
from accel_train.engine.zero import Zero
from accel_train.gradients import Share
from accel_train.randomness import forward_randomness
from accel_train.step import StepLosses


def gathered_without_gradient() -> None:
    """Each rank takes the whole loss, but only its own features have a gradient; the engine averages over ranks."""
    _average_over_ranks()
    surrogate = accel_train.step._surrogate

    def of_one_rank(task: Any, outputs: Any, gradients: Any, rows: slice, num_passes: int) -> Tensor:
        return surrogate(task, outputs, gradients, rows, num_passes // 2)

    accel_train.step._surrogate = of_one_rank


def local_loss() -> None:
    """Each micro-batch is compared with itself alone."""
    _average_over_ranks()

    def alone(engine: Engine, task: Any, micro_batches: list[Any], counts: list[int], draw: Any) -> StepLosses:
        total: dict[str, Tensor] = {}
        for j, batch in enumerate(micro_batches):
            engine.set_sync(last=j == len(micro_batches) - 1)
            with draw(j):
                outputs = engine.model(batch)
                losses = {name: value / len(micro_batches) for name, value in task.losses(outputs, batch).items()}
                engine.backward(torch.stack(list(losses.values())).sum())
            total = {name: total.get(name, 0) + value.detach() for name, value in losses.items()}
        return StepLosses(total, outputs)

    accel_train.step.cached = alone


def _average_over_ranks() -> None:
    def backward(engine: Engine, loss: Tensor) -> None:
        engine._backward(loss * engine.loss_scale)

    Engine.backward = backward  # type: ignore[method-assign]


def temperature_for_each_micro_batch() -> None:
    _share_temperature_by("ranks")


def temperature_for_each_rank() -> None:
    _share_temperature_by("micro-batches")


def _share_temperature_by(what: str) -> None:
    surrogate = accel_train.step._surrogate

    def shared(task: Any, outputs: Any, gradients: Any, rows: slice, num_passes: int) -> Tensor:
        return surrogate(task, outputs, gradients, rows, 2 if what == "ranks" else num_passes // 2)

    accel_train.step._surrogate = shared


def randomness_not_replayed() -> None:
    passes = [0]

    def draw(share: Share, j: int) -> AbstractContextManager[None]:
        passes[0] += 1
        return forward_randomness(
            seed=share.run.config.seed + passes[0] // (len(share.micro_batches) + 1),
            step=share.run.state.step,
            position=share.batch.positions[j],
            sample_ids=None,
        )

    Share.draw = draw  # type: ignore[method-assign]


def boundary_in_every_micro_batch() -> None:
    """DeepSpeed is left to decide when a step's last backward pass is."""

    def set_sync(engine: Engine, last: bool) -> None:
        pass

    Zero.set_sync = set_sync  # type: ignore[method-assign]


def divided_by_micro_batches() -> None:
    backward = Engine.backward

    def divided(engine: Engine, loss: Tensor) -> None:
        backward(engine, loss / 4)

    Engine.backward = divided  # type: ignore[method-assign]


def nan_on_one_rank() -> None:
    backward = Engine.backward

    def poisoned(engine: Engine, loss: Tensor) -> None:
        backward(engine, loss * torch.nan if engine.rank == 1 else loss)

    Engine.backward = poisoned  # type: ignore[method-assign]


def hooks_skipped() -> None:
    """The model is called past DistributedDataParallel."""
    whole = accel_train.gradients.forward_backward

    def past_the_wrapper(engine: Engine, *rest: Any) -> StepLosses:
        wrapper, engine.model = engine.model, engine.bare_model()
        try:
            return whole(engine, *rest)
        finally:
            engine.model = wrapper

    accel_train.gradients.forward_backward = past_the_wrapper


def clipped_by_the_engine() -> None:
    """DeepSpeed clips to 1.0 where nobody says otherwise."""
    check = Zero._check_active

    def checked(engine: Any) -> None:
        check(engine)
        engine.zero.clip_grad = 1.0

    Zero._check_active = checked  # type: ignore[method-assign]
    step = TorchOptimizerEngine.step

    def clipped(engine: Engine) -> None:
        nn.utils.clip_grad_norm_(list(engine.bare_model().parameters()), 1.0)
        step(engine)

    TorchOptimizerEngine.step = clipped  # type: ignore[method-assign]


def rate_for_each_rank() -> None:
    """Seen by nobody who reads the groups before or after the step."""
    step = TorchOptimizerEngine.step

    def hurried(engine: Any) -> None:
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        for group in engine.optimizer.param_groups:
            group["lr"] *= engine.world_size
        step(engine)
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    TorchOptimizerEngine.step = hurried  # type: ignore[method-assign]


def schedule_for_each_rank() -> None:
    """Accelerate's scheduler advances once for each process."""
    write = accel_train.tools.verify.launched.set_learning_rates

    def hurried(run: Any) -> None:
        write(run)
        for group in run.engine.optimizer.param_groups:
            group["lr"] *= run.engine.world_size

    accel_train.tools.verify.launched.set_learning_rates = hurried


def settings_of_the_first_group() -> None:
    """DeepSpeed's universal checkpoint gives all groups the weight decay of group 0."""
    write = accel_train.tools.verify.launched.set_learning_rates

    def copied(run: Any) -> None:
        write(run)
        for group in run.engine.optimizer.param_groups:
            group["weight_decay"] = run.engine.optimizer.param_groups[0]["weight_decay"]

    accel_train.tools.verify.launched.set_learning_rates = copied


def frozen_moves() -> None:
    step = TorchOptimizerEngine.step

    def moved(engine: Engine) -> None:
        step(engine)
        frozen = next(p for p in engine.bare_model().parameters() if not p.requires_grad)
        frozen.data.mul_(1.001)

    TorchOptimizerEngine.step = moved  # type: ignore[method-assign]


def ranks_drift() -> None:
    """A rank's weights change without the others'."""
    step = TorchOptimizerEngine.step

    def drifted(engine: Engine) -> None:
        step(engine)
        if engine.rank == 1:
            next(p for p in engine.bare_model().parameters() if p.requires_grad).data.mul_(1.001)

    TorchOptimizerEngine.step = drifted  # type: ignore[method-assign]


def samples_twice() -> None:
    """Every rank takes the same share."""

    def of_rank_0(
        num_rows: int, rank: int, world_size: int, num_micro_batches: int, *, interleaved: bool
    ) -> list[slice]:
        return rank_share(num_rows, 0, world_size, num_micro_batches, interleaved=interleaved)

    loader.rank_share = of_rank_0


def other_order() -> None:
    """A release that deals the samples out otherwise."""
    rows = Order.rows

    def turned(order: Order, step: int) -> Any:
        return rows(order, step)[::-1]

    Order.rows = turned  # type: ignore[method-assign]


def other_pixels() -> None:
    """The same samples, with other content."""
    to_device = Engine.to_device

    def darkened(engine: Engine, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = to_device(engine, batch)
        return {name: column // 2 if name == "pixel_values" else column for name, column in moved.items()}

    Engine.to_device = darkened  # type: ignore[method-assign]


CHANGED: list[tuple[Any, str]] = [
    (accel_train.gradients, "forward_backward"),
    (accel_train.step, "_surrogate"),
    (accel_train.step, "cached"),
    (accel_train.tools.verify.launched, "set_learning_rates"),
    (loader, "rank_share"),
    (Engine, "backward"),
    (Engine, "to_device"),
    (Order, "rows"),
    (Share, "draw"),
    (TorchOptimizerEngine, "step"),
    (Zero, "_check_active"),
    (Zero, "set_sync"),
]
"""All that the faults put others in the place of."""


def run_each(names: list[str], run: Callable[[], int]) -> int:
    """Runs a command once with each of the faults, in one process; the empty name is none. Prints the exit codes."""
    right = [(owner, name, vars(owner)[name]) for owner, name in CHANGED]
    for fault in names:
        if fault:
            globals()[fault]()
        with mock.patch.object(Engine, "close"):  # the ranks stay connected
            code = run()
        sys.stderr.flush()
        print(f"{END_OF_RUN}{fault or 'nothing'} {code}", flush=True)
        for owner, name, value in right:
            setattr(owner, name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    dist.barrier()
    sys.stdout.flush()
    return 0


END_OF_RUN = "=== exit code with "


def outcomes(folder: Path, ranks: int) -> dict[str, tuple[list[int], str]]:
    """By fault: every rank's exit code, and what rank 0 printed."""
    found: dict[str, tuple[list[int], str]] = {}
    for rank in range(ranks):
        text = (folder / f"rank{rank}.out").read_text()
        for said, fault, code in re.findall(rf"(.*?){END_OF_RUN}(\w+) (\d+)\n", text, re.DOTALL):
            codes, _ = found.setdefault(fault, ([], said))
            codes.append(int(code))
    return found
