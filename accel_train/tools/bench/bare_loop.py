"""The loop that one would write by hand, in plain PyTorch: what the ratios of `bench` stand against.

It shares with training the model, the batches and the task's losses, and nothing of the engines, of `step.py` or the loop.
It logs nothing, checks nothing, and its whole batch goes through the model at once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_train.engine.engine import run_in
from accel_train.models.blocks import checkpoint_activations, compile_blocks
from accel_train.optim.optimizers import make_optimizer
from accel_train.optim.param_groups import freeze, set_train_mode
from accel_train.run import Run
from accel_train.set_up import build_model
from accel_train.tasks.task import Batch


def plain_model(run: Run) -> nn.Module:
    """The run's model with its frozen and trained parts on the run's device, without any engine's wrapper."""
    _, model = build_model(run.config)
    freeze(model, run.plan)
    set_train_mode(model)
    return model.to(run.engine.device)


class BareLoop:
    """Plain DistributedDataParallel where there are several ranks, whatever the run's engine is."""

    def __init__(self, run: Run) -> None:
        config, self.task, self.device = run.config, run.task, run.engine.device
        self.rank, self.world_size = run.engine.rank, run.engine.world_size
        model = plain_model(run)
        if config.compute.activation_checkpointing:
            checkpoint_activations(model)
        self.optimizer = make_optimizer(model, run.plan, config.optimizer, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.limits = _limits(run, model)
        run_in(model, config.precision, self.device.type)
        if config.compute.compile:
            compile_blocks(model)
        self.model = DistributedDataParallel(model) if self.world_size > 1 else model

    def step(self, batch: Batch, columns: Batch) -> None:
        """One update. `batch` holds this rank's rows, `columns` what the loss reads of all ranks' rows."""
        self.optimizer.zero_grad()
        outputs = self.model(self.task.add_to_batch(self._on_device(batch)))
        if self.task.compares_whole_batch and self.world_size > 1:
            outputs = {name: self._of_all_ranks(name, value) for name, value in outputs.items()}
        losses = self.task.losses(outputs, columns)
        self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        if self.limits:
            self.scaler.unscale_(self.optimizer)
        for parameters, limit in self.limits:
            nn.utils.clip_grad_norm_(parameters, limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def columns_for_loss(self, batch: Batch) -> Batch:
        """What the loss reads beside the outputs; gathered here once, not in each step."""
        batch = self._on_device(batch)
        if not self.task.compares_whole_batch:
            return batch
        columns = {name: self._gathered(batch[name]) for name in self.task.loss_columns}
        if self.task.splits_loss:
            columns["anchors"] = torch.tensor([0, self.world_size * len(batch["sample_id"])])
        return columns

    def _of_all_ranks(self, name: str, value: Tensor) -> Tensor:
        """The features of the whole batch; gradients flow to this rank's own."""
        if name in self.task.shared_outputs:
            return value
        everyone = [torch.empty_like(value) for _ in range(self.world_size)]
        dist.all_gather(everyone, value.detach())
        everyone[self.rank] = value
        return torch.cat(everyone)

    def _gathered(self, column: Tensor) -> Tensor:
        if self.world_size == 1:
            return column
        everyone = [torch.empty_like(column) for _ in range(self.world_size)]
        dist.all_gather(everyone, column)
        return torch.cat(everyone)

    def _on_device(self, batch: Batch) -> Batch:
        return {name: column.to(self.device, non_blocking=True) for name, column in batch.items()}


def _limits(run: Run, model: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters and the norm to clip them to: each tower that has a limit, then all."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    towers = {group.tower: group.max_grad_norm for group in run.plan.groups if group.max_grad_norm is not None}
    limits = [
        ([parameters[name] for group in run.plan.groups if group.tower == tower for name in group.param_names], limit)
        for tower, limit in towers.items()
    ]
    if run.config.optimizer.max_grad_norm is not None:
        limits.append((list(parameters.values()), run.config.optimizer.max_grad_norm))
    return limits
