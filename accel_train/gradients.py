"""One step in its two halves: the gradients of a global batch, and what the optimizer makes of them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.data.loader import Step
from accel_train.optim.clip import clip_factors
from accel_train.randomness import forward_randomness
from accel_train.run import Run
from accel_train.step import StepLosses, forward_backward
from accel_train.tasks.task import Batch

STEPS_TO_DOUBLE_LOSS_SCALE = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """What this rank computes of a step."""

    run: Run
    batch: Step
    micro_batches: list[Batch]
    """As the loader gave them, with what the task adds to them on the device."""

    def draw(self, j: int) -> AbstractContextManager[None]:
        """The randomness of micro-batch j, the same each time."""
        run, sample_ids = self.run, None
        if run.config.dropout == "per_sample":
            sample_ids = self.micro_batches[j]["sample_id"].to(run.engine.device)
        return forward_randomness(
            seed=run.config.seed, step=run.state.step, position=self.batch.positions[j], sample_ids=sample_ids
        )


def share_of(run: Run, batch: Step) -> Share:
    return Share(run, batch, [run.task.add_to_batch(part) for part in batch.micro_batches])


def find_gradients(run: Run, batch: Step, counts: list[int]) -> tuple[StepLosses, Tensor]:
    """Leaves the gradient of the global batch in the engine, before clipping. Returns the losses and every group's norm.

    An fp16 overflow takes the same global batch again with half the loss scale, so it costs time and no step. What a smaller
    scale does not mend, or can't, is returned as it is, with the loss scale of before.
    """
    engine, state = run.engine, run.state
    engine.whereabouts.begin("preparing a batch")
    share = share_of(run, batch)
    before = state.loss_scale, state.steps_since_overflow
    while True:
        engine.loss_scale = state.loss_scale
        losses = forward_backward(engine, run.task, share.micro_batches, counts, share.draw)
        engine.whereabouts.begin("gradient norms")
        engine.unscale()
        norms = engine.grad_norms()
        if all_finite(losses, norms):
            return losses, norms
        if state.loss_scale <= 1 or not losses_finite(losses):
            state.loss_scale, state.steps_since_overflow = before
            return losses, norms
        engine.discard_gradients()
        state.loss_scale /= 2
        state.steps_since_overflow = 0


def losses_finite(losses: StepLosses) -> bool:
    return bool(torch.stack(list(losses.losses.values())).isfinite().all())


def all_finite(losses: StepLosses, norms: Tensor) -> bool:
    """Whether a step may change the weights. Losses and norms are the same on every rank, and so is the answer."""
    return bool(norms.isfinite().all()) and losses_finite(losses)


def update(run: Run, norms: Tensor) -> None:
    """Clips the gradients, whose norms these are, and updates the weights."""
    engine, config, state = run.engine, run.config, run.state
    engine.whereabouts.begin("optimizer step")
    groups = engine.optimizer.param_groups
    engine.scale_gradients(
        clip_factors(
            norms,
            [group["tower"] for group in groups],
            [group["max_grad_norm"] for group in groups],
            config.optimizer.max_grad_norm,
        )
    )
    engine.step()
    engine.keep_below(run.task.weight_limits())
    if config.precision == "fp16":
        state.steps_since_overflow += 1
        if state.steps_since_overflow % STEPS_TO_DOUBLE_LOSS_SCALE == 0:
            state.loss_scale *= 2
