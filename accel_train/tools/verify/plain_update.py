"""The update that it must be: torch's own clipping and optimizer, on one process, from a given gradient.

The launch's own reduced gradient is given, not the reference's. AdamW turns a gradient that is nothing but rounding (that
of a key's bias) into a whole step, so two right runs would differ there; from one gradient there is one update.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from accel_train.checkpoint.rollbacks import lr_reduction
from accel_train.config.schema import OptimizerSection
from accel_train.optim.lion import Lion
from accel_train.run import Run
from accel_train.tools.verify.launched import Launched, Named


@dataclass(slots=True)
class PlainUpdate:
    after: Named
    """Weights that train, after the update."""
    state: dict[str, Named]
    """The optimizer's state after it, by kind."""
    clipped_norm: float
    """Of the whole gradient, after clipping."""


def take_plain_update(run: Run, launched: Launched, updates: list[int]) -> PlainUpdate:
    """`updates` are, for each group, those behind the optimizer state that the run brings."""
    parameters = {name: nn.Parameter(launched.before[name].clone()) for g in run.plan.groups for name in g.param_names}
    for name, parameter in parameters.items():
        gradient = launched.gradients.get(name)
        parameter.grad = None if gradient is None else gradient.clone()
    if not launched.is_finite:
        after = {name: parameter.detach() for name, parameter in parameters.items()}
        return PlainUpdate(after, launched.state, math.nan)
    _clip(run, parameters)
    clipped_norm = float(nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None]))
    scale = scale_asked(run, launched.step)
    groups = [
        {
            "params": [parameters[name] for name in group.param_names],
            "lr": group.lr * scale,
            "weight_decay": group.weight_decay,
        }
        for group in run.plan.groups
    ]
    optimizer = _optimizer(groups, run.config.optimizer)
    for group, count in zip(run.plan.groups, updates, strict=True):
        for name in group.param_names:
            held = {kind: launched.state_before[kind][name].clone() for kind in launched.state_before}
            if held:
                optimizer.state[parameters[name]] = {**held, "step": torch.tensor(float(count))}
    optimizer.step()
    for name, limit in run.task.weight_limits().items():
        if name in parameters:
            parameters[name].data.clamp_(max=limit)
    state: dict[str, Named] = {}
    for name, parameter in parameters.items():
        for kind in launched.state:
            held = optimizer.state[parameter].get(kind)
            state.setdefault(kind, {})[name] = torch.zeros_like(parameter) if held is None else held
    return PlainUpdate({name: parameter.detach() for name, parameter in parameters.items()}, state, clipped_norm)


def scale_asked(run: Run, step: int) -> float:
    """What the configuration multiplies every base learning rate by in the step after `step` ones."""
    return run.phase.lr_scale(step) * lr_reduction(step, run.state.rollbacks)


def _clip(run: Run, parameters: dict[str, nn.Parameter]) -> None:
    """Each tower by its own limit, then everything by the overall one."""
    limits = {group.tower: group.max_grad_norm for group in run.plan.groups}
    for tower, limit in limits.items():
        if limit is not None:
            names = [name for group in run.plan.groups if group.tower == tower for name in group.param_names]
            nn.utils.clip_grad_norm_([parameters[name] for name in names], limit)
    if run.phase.optimizer.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(list(parameters.values()), run.phase.optimizer.max_grad_norm)


def _optimizer(groups: list[dict[str, object]], config: OptimizerSection) -> torch.optim.Optimizer:
    betas = (config.betas[0], config.betas[1])
    if config.name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=config.eps, foreach=False)
    if config.name == "adam":
        return torch.optim.Adam(groups, betas=betas, eps=config.eps, foreach=False)
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, foreach=False)
    return Lion(groups, lr=0.0, betas=betas)
