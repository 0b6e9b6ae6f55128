"""Optimizers over planned groups."""

from typing import Any

import torch
from torch import nn

from accel_train.config.schema import OptimizerSection
from accel_train.optim.lion import Lion
from accel_train.optim.param_groups import GroupPlan

STATE_NAMES: dict[str, tuple[str, ...]] = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lion": ("exp_avg",),
}
"""Tensors of a parameter's own shape that each optimizer keeps for it. SGD keeps none where momentum is 0."""


def state_names(config: OptimizerSection) -> tuple[str, ...]:
    """Tensors that this optimizer keeps for each parameter."""
    return () if config.name == "sgd" and config.momentum == 0 else STATE_NAMES[config.name]


def make_optimizer(
    model: nn.Module, plan: GroupPlan, config: OptimizerSection, *, fused: bool
) -> torch.optim.Optimizer:
    """An optimizer whose groups carry `name`, `tower`, `base_lr` and `max_grad_norm` beside torch's own keys.

    `fused` asks for torch's one-kernel update; Lion has none and updates by lists of tensors.
    """
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.param_names],
            "name": group.name,
            "tower": group.tower,
            "base_lr": group.lr,
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "max_grad_norm": group.max_grad_norm,
        }
        for group in plan.groups
    ]
    # Every group has its own rate, so the default is never used. 0 would make a group that forgot its rate stand still.
    default_lr = 0.0
    betas = (config.betas[0], config.betas[1])
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=default_lr, betas=betas, eps=config.eps, fused=fused)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=default_lr, betas=betas, eps=config.eps, fused=fused)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=default_lr, momentum=config.momentum, fused=fused)
    return Lion(groups, lr=default_lr, betas=betas)
