"""The gradients of one global batch from its micro-batches: exact however the batch is split.

`summed` is for losses that add up over samples or tokens, `cached` for losses that compare all samples with each other.
Both leave the gradient of the loss of the whole global batch in the engine and return that loss. Micro-batches come in host
memory, and each goes to the device for its own pass: there, memory does not grow with their number.
"""

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.batch_loss import batch_loss, total
from accel_train.engine.engine import Engine
from accel_train.light_graphs import all_light, has_frozen, light_outputs
from accel_train.tasks.contract import check_gathered, losses_of
from accel_train.tasks.task import Batch, Task

Draw = Callable[[int], AbstractContextManager[None]]
"""Puts randomness under the control of micro-batch j; entered again, it repeats the same draws."""


@dataclass(slots=True)
class StepLosses:
    """What one step's forward passes gave. `losses` are of the whole global batch and the same on every rank."""

    losses: dict[str, Tensor]
    outputs: Callable[[], Batch]
    """For `cached`: gives the outputs of the global batch, and all ranks call it together. For `summed`: those of this
    rank's last micro-batch."""


def forward_backward(
    engine: Engine, task: Task, micro_batches: list[Batch], counts: list[int], draw: Draw
) -> StepLosses:
    """`counts` holds each rank's number of rows in this global batch, rank 0 first."""
    if task.compares_whole_batch:
        return cached(engine, task, micro_batches, counts, draw)
    return summed(engine, task, micro_batches, draw)


def summed(engine: Engine, task: Task, micro_batches: list[Batch], draw: Draw) -> StepLosses:
    """Each micro-batch's mean loss, weighted by its share of the targets of the global batch.

    A micro-batch without targets has no mean loss. It still takes its forward and backward pass, for the collectives in
    them, with a gradient of zero.
    """
    targets = torch.stack([task.num_targets(batch) for batch in micro_batches]).to(engine.device, torch.float64)
    everywhere = engine.sum_(targets.sum())
    shares = (targets / everywhere.clamp(min=torch.finfo(torch.float64).tiny)).float()
    empty = (targets == 0).tolist()
    logged: dict[str, Tensor] = {}
    outputs: Batch = {}
    here = engine.whereabouts
    for j, part in enumerate(micro_batches):
        engine.set_sync(last=j == len(micro_batches) - 1)
        batch = engine.to_device(part)
        with draw(j):
            here.begin("forward")
            outputs = engine.model(batch)
            here.begin("loss")
            losses = _no_losses(task, outputs, batch) if empty[j] else losses_of(task, outputs, batch, batch)
            here.begin("backward")
            engine.backward(total(losses) * shares[j])
        for name, value in losses.items():
            logged[name] = logged.get(name, 0) + value.detach() * shares[j]
    return StepLosses({name: engine.sum_(value) for name, value in logged.items()}, lambda: outputs)


def _no_losses(task: Task, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
    """Zeros under the names of the task's losses, which hang on the graph of all outputs and have a gradient of zero."""
    with torch.no_grad():
        names = list(task.losses({name: value.detach() for name, value in outputs.items()}, batch))
    nothing = torch.stack([value[:0].sum() for value in outputs.values() if value.requires_grad]).sum()
    return dict.fromkeys(names, nothing / len(names))


def cached(engine: Engine, task: Task, micro_batches: list[Batch], counts: list[int], draw: Draw) -> StepLosses:
    """Gradient caching (Gao et al., 2021, arXiv:2101.06983), made exact over ranks.

    Encode every micro-batch, keeping the graphs of the last `compute.kept_graphs`, and the light ones of all; take the loss
    of the global batch and its gradient with respect to the outputs once; then push that gradient through each micro-batch's
    graph, encoding again under the same random draws where the graph was not kept. One micro-batch needs no second pass at
    all.
    """
    num, here = len(micro_batches), engine.whereabouts
    here.begin("forward")
    pieces, first_kept, light = _encode(engine, task, micro_batches, draw)
    check_gathered(task, pieces[-1], micro_batches[-1])
    found = batch_loss(engine, task, pieces, micro_batches, counts)
    gradients = found.gradients

    # Kept graphs go first: zero3 and fsdp2 allow no other forward pass between a graph and its backward. They go in one
    # backward pass, since DDP and ZeRO reduce in the last one, and with all graphs kept there is no other. Light graphs go
    # in the last pass of all: DDP waits in it for every parameter's gradient.
    rows = _rows_of(micro_batches)
    num_passes = engine.world_size * num
    here.begin("backward")
    with draw(num - 1):
        kept = [_surrogate(task, pieces[j], gradients, rows[j], num_passes) for j in range(first_kept, num)]
        del pieces[first_kept : num - 1]
        engine.backward(torch.stack(kept).sum())
    again = [name for name in gradients if name not in light]
    for j in range(first_kept):
        engine.set_sync(last=j == first_kept - 1)
        with draw(j):
            here.begin("second forward")
            outputs = engine.model(engine.to_device(_inputs_of(task, micro_batches[j], again, pieces[-1])))
            here.begin("backward")
            terms = [_surrogate(task, {name: outputs[name] for name in again}, gradients, rows[j], num_passes)]
            if j == first_kept - 1 and light:
                waiting = [{name: piece[name] for name in light} for piece in pieces[:first_kept]]
                terms += [_surrogate(task, piece, gradients, rows[i], num_passes) for i, piece in enumerate(waiting)]
            engine.backward(torch.stack(terms).sum())
    return StepLosses(found.losses, found.outputs)


def _encode(
    engine: Engine, task: Task, micro_batches: list[Batch], draw: Draw
) -> tuple[list[Batch], int, frozenset[str]]:
    """Outputs of every micro-batch, the first one whose whole graph is there, and the outputs whose graphs all have."""
    num = len(micro_batches)
    first_kept = max(0, num - task.config.compute.kept_graphs)
    light = frozenset[str]()
    pieces: list[Batch] = []
    may_be_light = first_kept > 0 and engine.can_keep_graphs and has_frozen(engine.model)
    for j, batch in enumerate(micro_batches):
        engine.set_sync(last=first_kept == 0 and j == num - 1)
        looks = j == 0 and may_be_light
        with draw(j), torch.set_grad_enabled(j >= first_kept or looks or bool(light)):
            outputs = engine.model(engine.to_device(batch))
        if looks:
            light = light_outputs(outputs, task.output_inputs)
            if all_light(outputs, light | task.shared_outputs):
                first_kept = 0
        if j < first_kept:
            outputs = {name: value if name in light else value.detach() for name, value in outputs.items()}
        pieces.append(outputs)
    return pieces, first_kept, light


def _rows_of(micro_batches: list[Batch]) -> list[slice]:
    """The rows of each micro-batch among this rank's."""
    ends = itertools.accumulate((len(batch["sample_id"]) for batch in micro_batches), initial=0)
    return [slice(*ends_of) for ends_of in itertools.pairwise(ends)]


def _surrogate(task: Task, outputs: Batch, gradients: Batch, rows: slice, num_passes: int) -> Tensor:
    """A scalar whose gradient is the loss's; every pass carries an equal part of the shared outputs' gradient."""
    terms = [
        (value * gradients[name]).sum() / num_passes
        if name in task.shared_outputs
        else (value * gradients[name][rows]).sum()
        for name, value in outputs.items()
        if name in gradients
    ]
    return torch.stack(terms).sum()


def _inputs_of(task: Task, batch: Batch, learnt: list[str], outputs: Batch) -> Batch:
    """The batch without what only frozen towers read: their outputs need no gradient, so no second pass."""
    needed, unneeded = set[str](), set[str]()
    for name, columns in task.output_inputs.items():
        if name in outputs:
            (needed if name in learnt else unneeded).update(columns)
    return {name: column for name, column in batch.items() if name in needed or name not in unneeded}
