"""Normalisation by the statistics of a whole batch that lies in pieces on several ranks (Ioffe and Szegedy 2015)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def synced_norm(
    values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, C, ...) values to the same, each channel with mean 0 and variance 1 over all ranks, times weight, plus bias.

    Computed in fp32 (fp64 for fp64); the output has the dtype of the values. Also returns what it was computed with: mean
    (C,), variance (C,), divided by the count, and the count of values in a channel, 0-d. Ranks may hold different numbers
    of rows; every rank must take part, in forward and in backward.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _SyncedNorm.apply(values, weight, bias, eps)
    return found


class _SyncedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(exact, _all_but_channels(values), correction=0)
        count = mean.new_full((), values.numel() / max(values.shape[1], 1))
        if _num_ranks() > 1:
            mean, variance, count = _joined(mean, variance, count)
        scale = (variance + eps).rsqrt()
        output = (exact - _spread(mean, values)) * _spread(scale, values)
        if weight is not None and bias is not None:
            output = output * _spread(weight, values) + _spread(bias, values)
        ctx.save_for_backward(values, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(values.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, scale, count = ctx.saved_tensors
        grad = grad_output.to(mean.dtype)
        unit = (values.to(mean.dtype) - _spread(mean, values)) * _spread(scale, values)
        axes = _all_but_channels(values)
        sums = torch.stack([grad.sum(axes), (grad * unit).sum(axes)])
        own_bias_grad, own_weight_grad = sums.clone()  # the engine adds the ranks' parts up, as for every parameter
        if _num_ranks() > 1:
            dist.all_reduce(sums)
        mean_grad, mean_product = sums / count
        factor = scale if weight is None else scale * weight
        found = (grad - _spread(mean_grad, values) - unit * _spread(mean_product, values)) * _spread(factor, values)
        parameters = (own_weight_grad, own_bias_grad) if weight is not None else (None, None)
        return found.to(values.dtype), *parameters, None


def _joined(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of all ranks together from those of each (Chan, Golub and LeVeque 1979)."""
    mine = torch.cat([mean, variance, count.view(1)])
    everyone = [torch.empty_like(mine) for _ in range(_num_ranks())]
    dist.all_gather(everyone, mine)
    rows = torch.stack(everyone)
    channels = len(mean)
    means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
    total = counts.sum()
    shares = counts / total
    joined = (means * shares).sum(0)
    return joined, ((variances + (means - joined).square()) * shares).sum(0), total


def _num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _all_but_channels(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _spread(per_channel: Tensor, values: Tensor) -> Tensor:
    """(C,) in a shape that broadcasts against (n, C, ...)."""
    return per_channel.view(1, -1, *[1] * (values.ndim - 2))
