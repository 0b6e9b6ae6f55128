"""The loss of a global batch whose outputs lie on many ranks, and its gradient with respect to those of this rank.

Either the outputs of all ranks are gathered, or those that a task lets travel go around the ranks block by block, and each
rank compares its own rows with one block after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from accel_train.engine.engine import Engine
from accel_train.engine.ring import around_ring
from accel_train.tasks.contract import losses_of
from accel_train.tasks.task import Batch, Task

Take = Callable[[Batch, Batch], tuple[dict[str, Tensor], Batch]]
"""From outputs and the batch that `losses` reads to the losses and the gradient of their sum for each learnt output."""


@dataclass(slots=True)
class BatchLoss:
    losses: dict[str, Tensor]
    """Of the global batch, the same on every rank."""
    gradients: Batch
    """Of their sum, for each learnt output: this rank's rows, or the whole of a shared output."""
    outputs: Callable[[], Batch]
    """Gives the outputs of the global batch. All ranks call it together: it may have to gather them."""


def batch_loss(
    engine: Engine, task: Task, pieces: list[Batch], micro_batches: list[Batch], counts: list[int]
) -> BatchLoss:
    """`pieces` are the outputs of the micro-batches; what needs a gradient in the last one is learnt."""
    outputs = {
        name: value.detach().clone()
        if name in task.shared_outputs
        else torch.cat([piece[name].detach() for piece in pieces])
        for name, value in pieces[-1].items()
    }
    columns = engine.to_device(
        {name: torch.cat([batch[name] for batch in micro_batches]) for name in task.loss_columns}
    )
    learnt = [name for name, value in pieces[-1].items() if value.requires_grad]
    take = partial(_take, task, learnt, list(micro_batches[-1]))
    if task.ring_outputs and engine.world_size > 1:
        return _around_ring(engine, task, outputs, columns, counts, take)
    return _gathered(engine, task, outputs, columns, counts, take)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _take(
    task: Task, learnt: list[str], known: list[str], outputs: Batch, batch: Batch
) -> tuple[dict[str, Tensor], Batch]:
    leaves = {name: value.detach().requires_grad_(name in learnt) for name, value in outputs.items()}
    losses = losses_of(task, leaves, batch, known)
    found = torch.autograd.grad(total(losses), [leaves[name] for name in learnt])
    return {name: value.detach() for name, value in losses.items()}, dict(zip(learnt, found, strict=True))


def _gathered(engine: Engine, task: Task, outputs: Batch, columns: Batch, counts: list[int], take: Take) -> BatchLoss:
    """Every rank has all outputs. Where the task splits its loss, a rank accounts for its own rows, called anchors."""
    start = sum(counts[: engine.rank])
    mine = slice(start, start + counts[engine.rank])
    engine.whereabouts.begin("gathering outputs")
    whole = _gather(engine, task, outputs, counts)
    batch = _gather(engine, task, columns, counts)
    if task.splits_loss:
        batch["anchors"] = torch.tensor([mine.start, mine.stop])
    engine.whereabouts.begin("loss")
    losses, gradients = take(whole, batch)
    if task.splits_loss:
        _sum_over_ranks(engine, [*gradients.values(), *losses.values()])
    own = {name: value if name in task.shared_outputs else value[mine] for name, value in gradients.items()}
    return BatchLoss(losses, own, lambda: whole)


def _around_ring(
    engine: Engine, task: Task, outputs: Batch, columns: Batch, counts: list[int], take: Take
) -> BatchLoss:
    """Some outputs travel, with the columns of their rows, and their gradient follows them; the others stay."""
    num_own = counts[engine.rank]
    losses, gradients = dict[str, Tensor](), Batch()

    def compare(owner: int, block: Batch) -> Batch:
        """The loss between this rank's rows and a block. Returns the gradient of what has travelled."""
        travelling = {name: block[name] for name in task.ring_outputs}
        is_own = owner == engine.rank
        batch = {name: mine if is_own else torch.cat([mine, block[name]]) for name, mine in columns.items()}
        batch["anchors"] = torch.tensor([0, num_own])
        batch["block"] = torch.tensor([0, num_own] if is_own else [num_own, num_own + counts[owner]])
        batch["num_rows"] = torch.tensor(sum(counts))
        more_losses, more = take(outputs | travelling, batch)
        _add(losses, more_losses)
        _add(gradients, {name: value for name, value in more.items() if name not in travelling})
        return {name: value for name, value in more.items() if name in travelling}

    engine.whereabouts.begin("loss")
    home = around_ring(engine, {name: outputs[name] for name in task.ring_outputs} | columns, counts, compare)
    shared = [value for name, value in gradients.items() if name in task.shared_outputs]
    _sum_over_ranks(engine, [*shared, *losses.values()])
    return BatchLoss(losses, gradients | home, lambda: _gather(engine, task, outputs, counts))


def _add(sums: Batch, more: Batch) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _gather(engine: Engine, task: Task, rows: Batch, counts: list[int]) -> Batch:
    """Outputs or columns of the global batch."""
    return {
        name: value if name in task.shared_outputs else engine.gather_rows(value, counts)
        for name, value in rows.items()
    }


def _sum_over_ranks(engine: Engine, values: list[Tensor]) -> None:
    """Sums tensors over ranks in place, in one reduction."""
    flat = torch.cat([value.reshape(-1) for value in values])
    engine.sum_(flat)
    for value, summed in zip(values, flat.split([value.numel() for value in values]), strict=True):
        value.copy_(summed.view_as(value))
