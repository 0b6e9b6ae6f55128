"""Linear layers for ZeRO-3: they remember their sharded weight for the backward pass, and round as torch's own do."""

import functools
from typing import Any

from torch import Tensor, nn


def remember_sharded_weights(model: nn.Module) -> None:
    """Replaces the forward of every nn.Linear, whose autograd graph would hold the gathered weight until its backward.

    DeepSpeed has such a function and would put it in the place of torch's `linear` for the whole process. In 16 bits it
    rounds before the bias is added and again after, so ZeRO-3 would drift from the other engines; only its backward is
    taken over.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    class Linear(LinearFunctionForZeroStage3):
        @staticmethod
        def forward(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            # A view, because autocast would keep the 16-bit copy of a leaf until the whole forward pass is over.
            return nn.functional.linear(values, weight.view_as(weight), bias)

    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = functools.partial(_apply, Linear, module)  # type: ignore[method-assign]


def _apply(function: Any, layer: nn.Linear, values: Tensor) -> Tensor:
    output: Tensor = function.apply(values, layer.weight, layer.bias)
    return output
