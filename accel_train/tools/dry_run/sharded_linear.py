"""Linear layers as ZeRO-3 has them: backward reads the weight again, so no graph keeps it or its 16-bit copy."""

import functools
from typing import Any

import torch
from torch import Tensor, nn


def read_weights_again(model: nn.Module) -> None:
    """What `engine/zero_linear.py` does to a model, without DeepSpeed, which a plan needs not."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = functools.partial(_apply, module)  # type: ignore[method-assign]


def _apply(layer: nn.Linear, values: Tensor) -> Tensor:
    output: Tensor = _Linear.apply(values, layer.weight, layer.bias)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(values, weight)
        context.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return nn.functional.linear(values, weight.view_as(weight), bias)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = context.saved_tensors
        enabled, dtype = context.autocast
        needs = context.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            of_values = gradient.matmul(weight) if needs[0] else None
            of_weight = rows.t().matmul(values.reshape(-1, values.shape[-1])) if needs[1] else None
        return of_values, of_weight, rows.sum(0) if needs[2] else None
