"""BatchNorm and the promise that a step doesn't depend on how its batch is split."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from accel_train.errors import UserError


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its running statistics. Its weight and bias train; its statistics never move."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        super().train(False)
        return self

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def apply_batch_norm(model: nn.Module, mode: Literal["refuse", "frozen", "local"]) -> None:
    """Refuses, freezes or leaves the BatchNorm layers of a model (`model.batch_norm` in the configuration)."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not layers or mode == "local":
        return
    if mode == "refuse":
        raise UserError(
            f"model.batch_norm is refuse, and the model has {len(layers)} BatchNorm layers ({next(iter(layers))} …). "
            "Their batch statistics depend on how a batch is split over ranks and micro-batches. Set "
            "model.batch_norm=frozen to use the running statistics of pretrained weights, model.batch_norm=local to give "
            "up split invariance, or take an architecture without BatchNorm (convnext, vit)."
        )
    for name, layer in layers.items():
        model.set_submodule(name, _frozen(layer, name))


def _frozen(layer: _BatchNorm, name: str) -> FrozenBatchNorm2d:
    if not isinstance(layer, nn.BatchNorm2d) or layer.running_mean is None:
        raise UserError(
            f"model.batch_norm is frozen, but {name} ({type(layer).__name__}) has no 2-d running statistics."
        )
    frozen = FrozenBatchNorm2d(layer.num_features, eps=layer.eps, affine=layer.affine)
    frozen.weight, frozen.bias = layer.weight, layer.bias
    for buffer, value in layer.named_buffers():
        frozen.register_buffer(buffer, value)
    return frozen.train()
