"""Gradient clipping by group: first each tower by its own limit, then everything by the overall one."""

import math

import torch
from torch import Tensor

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6; the same here, so that results agree


def clip_factors(
    norms: Tensor, towers: list[str], tower_limits: list[float | None], limit: float | None
) -> list[float]:
    """What to multiply each group's gradient by.

    `norms` (groups,) are the gradient norms before clipping. A tower's norm is taken over all its groups, the overall norm
    over all groups after the towers were clipped. Factors are at most 1.
    """
    squares = norms.double().square()
    factors = torch.ones_like(squares)
    for tower, tower_limit in dict(zip(towers, tower_limits, strict=True)).items():
        if tower_limit is not None:
            members = torch.tensor([name == tower for name in towers])
            factors[members] = _factor(float(squares[members].sum()), tower_limit)
    if limit is not None:
        factors *= _factor(float((squares * factors.square()).sum()), limit)
    return factors.tolist()


def total_norm(norms: Tensor) -> float:
    """Norm over all groups."""
    return math.sqrt(float(norms.double().square().sum()))


def _factor(square: float, limit: float) -> float:
    return min(1.0, limit / (math.sqrt(square) + _EPS))
