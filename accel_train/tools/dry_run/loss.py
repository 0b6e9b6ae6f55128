"""The loss over a global batch on fake tensors, as `batch_loss.py` takes it, and the gradient of this rank's outputs."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from accel_train.tasks.task import Batch, Task
from accel_train.tools.dry_run.counting import Counting

MOST_BLOCKS = 2
"""Of so many ranks the loss is taken, where their outputs come in blocks: the others hold and cost what the second does."""


class DryLoss:
    """Of one rank with own_rows rows, among world_size of its like. `example` holds a micro-batch's columns."""

    def __init__(self, task: Task, counted: Counting, example: Batch, *, own_rows: int, world_size: int) -> None:
        self.task, self.counted, self.example = task, counted, example
        self.own_rows, self.world_size = own_rows, world_size

    def gradients(self, outputs: Batch) -> tuple[Batch, Batch, bool]:
        """From a micro-batch's outputs to the gradient of all of this rank's, and whether the loss could be taken.

        Between the two stand the outputs that a step holds to its end.
        """
        self.counted.label, self.counted.phase = "features and loss", "loss"
        learnt = [name for name, value in outputs.items() if value.requires_grad]
        own = {
            name: value.detach().clone() if name in self.task.shared_outputs else _empty(value, self.own_rows)
            for name, value in outputs.items()
        }
        if self.task.ring_outputs and self.world_size > 1:
            return self._around_ring(own, learnt)
        return self._gathered(own, learnt)

    def taken(self, outputs: Batch, batch: Batch) -> tuple[Tensor, bool]:
        """The loss, or where it can't be taken without numbers or columns, something with a gradient for every output."""
        self.counted.label, self.counted.phase = "features and loss", "loss"
        try:
            return torch.stack(list(self.task.losses(outputs, batch).values())).sum(), True
        except (KeyError, DataDependentOutputException, DynamicOutputShapeException):
            wanted = [value.float().sum() for value in outputs.values() if value.requires_grad]
            return torch.stack(wanted).sum(), False

    def _gathered(self, outputs: Batch, learnt: list[str]) -> tuple[Batch, Batch, bool]:
        """The first rank's rows come first, so the gradient of the whole serves for its own."""
        total, shared = self.own_rows * self.world_size, self.task.shared_outputs
        if self.world_size > 1:
            outputs = {name: value if name in shared else _empty(value, total) for name, value in outputs.items()}
        batch = self._columns(total)
        if self.task.splits_loss:
            batch["anchors"] = _Numbers([0, self.own_rows])  # type: ignore[assignment]
        gradients, has_loss = self._take(outputs, learnt, batch)
        if self.task.splits_loss:
            torch.cat([value.reshape(-1) for value in gradients.values()])
        return gradients, outputs, has_loss

    def _around_ring(self, outputs: Batch, learnt: list[str]) -> tuple[Batch, Batch, bool]:
        """With what `engine/ring.py` holds meanwhile."""
        own, gradients, leaving, has_loss = self.own_rows, Batch(), Batch(), True
        block = {name: outputs[name] for name in self.task.ring_outputs}
        for turn in range(min(self.world_size, MOST_BLOCKS)):
            coming = {name: _empty(value, own) for name, value in block.items()}
            before = {name: _empty(value, own) for name, value in leaving.items()}
            batch = self._columns(own if turn == 0 else 2 * own)
            batch["anchors"] = _Numbers([0, own])  # type: ignore[assignment]
            batch["block"] = _Numbers([0, own] if turn == 0 else [own, 2 * own])  # type: ignore[assignment]
            batch["num_rows"] = own * self.world_size  # type: ignore[assignment]
            found, has_loss = self._take(outputs | block, learnt, batch)
            added = {name: value for name, value in found.items() if name in block}
            for name in found.keys() - added.keys():
                gradients[name] = gradients[name] + found[name] if name in gradients else found[name]
            leaving = {name: value + before[name] if before else value for name, value in added.items()}
            block = coming
            del found, added
        return gradients | leaving, outputs, has_loss

    def _take(self, outputs: Batch, learnt: list[str], batch: Batch) -> tuple[Batch, bool]:
        leaves = {name: value.detach().requires_grad_(name in learnt) for name, value in outputs.items()}
        loss, has_loss = self.taken(leaves, batch)
        found = torch.autograd.grad(loss, [leaves[name] for name in learnt])
        return dict(zip(learnt, found, strict=True)), has_loss

    def _columns(self, num_rows: int) -> Batch:
        """What losses read beside the outputs."""
        names = [name for name in self.task.loss_columns if name in self.example]
        return {name: _empty(self.example[name], num_rows) for name in names}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _empty(like: Tensor, num_rows: int) -> Tensor:
    return like.new_empty((num_rows, *like.shape[1:]))


class _Numbers(list[int]):
    """Stands for a tensor that says which rows are meant, whose numbers must be read."""

    def tolist(self) -> list[int]:
        return list(self)
