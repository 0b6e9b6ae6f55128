"""BatchNorm and the promise that a step doesn't depend on how its batch is split."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from accel_train.errors import UserError
from accel_train.models.synced_norm import synced_norm


class _Now:
    """The micro-batch in force: (step, place in the global batch). One for the whole process, autograd's threads too."""

    micro_batch: tuple[int, int] | None = None


_NOW = _Now()


@contextmanager
def batch_statistics(step: int, position: int) -> Iterator[None]:
    """Forward and backward of one micro-batch. However often it is computed, running statistics move once.

    A cached step encodes its micro-batches twice, activation checkpointing runs blocks again, and an fp16 overflow repeats
    the whole step.
    """
    before, _NOW.micro_batch = _NOW.micro_batch, (step, position)
    try:
        yield
    finally:
        _NOW.micro_batch = before


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics. Its weight and bias train; its statistics never move."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        super().train(False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class LocalBatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm, over one micro-batch of one rank, whose running statistics see each micro-batch once."""

    seen: tuple[int, frozenset[int]] = (-1, frozenset())
    """The present step, and the places of its micro-batches that the running statistics hold already."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self._is_repeated():
            assert self.running_mean is not None and self.running_var is not None
            # Copies that nobody reads: checkpointing wants the recomputed pass to save as many tensors as the first.
            aside = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(input, *aside, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)

    @torch.compiler.disable
    def _is_repeated(self) -> bool:
        """Whether this layer has met the micro-batch before. From now on it has."""
        if _NOW.micro_batch is None:
            return False
        step, position = _NOW.micro_batch
        places = self.seen[1] if self.seen[0] == step else frozenset()
        self.seen = step, places | {position}
        return position in places


class SyncedBatchNorm2d(LocalBatchNorm2d):
    """BatchNorm over one micro-batch of all ranks together, on any device: torch's SyncBatchNorm refuses the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = synced_norm(input, self.weight, self.bias, self.eps)
        if not self._is_repeated():
            self._follow(mean, variance * (count / (count - 1).clamp(min=1)))
        return output

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics as torch does; the variance is the unbiased one."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


REPLACEMENTS: dict[str, type[nn.BatchNorm2d]] = {
    "frozen": FrozenBatchNorm2d,
    "local": LocalBatchNorm2d,
    "sync": SyncedBatchNorm2d,
}


def apply_batch_norm(
    model: nn.Module, mode: Literal["refuse", "frozen", "local", "sync"], frozen: Collection[str] = ()
) -> None:
    """Refuses or replaces the BatchNorm layers of a model (`model.batch_norm` in the configuration).

    `frozen` names the parameters that never train. Layers that have no others stay in eval mode as they are.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, layer in list(layers.items()):
        own = [f"{name}.{parameter}" for parameter, _ in layer.named_parameters()]
        if own and all(parameter in frozen for parameter in own):
            del layers[name]
    if not layers:
        return
    if mode == "refuse":
        raise UserError(
            f"model.batch_norm is refuse, and the model has {len(layers)} BatchNorm layers that would train "
            f"({next(iter(layers))} …). Their batch statistics depend on how a batch is split over ranks and micro-batches. "
            "Set model.batch_norm=frozen to use the running statistics of pretrained weights, give their tower lr 0, set "
            "model.batch_norm=sync or local to give up split invariance, or take an architecture without BatchNorm "
            "(convnext, vit).",
            code="AT123",
        )
    for name, layer in layers.items():
        model.set_submodule(name, _replaced(layer, name, mode))


def _replaced(layer: _BatchNorm, name: str, mode: str) -> nn.BatchNorm2d:
    if not isinstance(layer, nn.BatchNorm2d) or layer.running_mean is None:
        raise UserError(
            f"model.batch_norm is {mode}, but {name} ({type(layer).__name__}) has no 2-d running statistics."
        )
    new = REPLACEMENTS[mode](layer.num_features, eps=layer.eps, momentum=layer.momentum, affine=layer.affine)
    new.weight, new.bias = layer.weight, layer.bias
    for buffer, value in layer.named_buffers():
        new.register_buffer(buffer, value)
    return new.train()
