"""What engines share that keep an ordinary torch optimizer: one process, DDP and FSDP2."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

from accel_train.engine.engine import Engine, Gradients
from accel_train.engine.shards import Shard
from accel_train.errors import UserError


class TorchOptimizerEngine(Engine):
    """Gradients lie in `.grad` of the parameters that the optimizer holds."""

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def gradients(self) -> Gradients:
        return [
            [_local(p.grad) for p in group["params"] if p.grad is not None] for group in self.optimizer.param_groups
        ]

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def discard_gradients(self) -> None:
        self.optimizer.zero_grad()

    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in self.bare_model().named_parameters():
            state: dict[str, Tensor] = {}
            if id(parameter) in trained:
                held = self._state_of(parameter, state_names)
                state = {key: _local(held[key]).view(-1) for key in state_names}
            yield Shard(
                name=name,
                shape=tuple(parameter.shape),
                offset=_flat_offset(parameter),
                weight=_local(parameter.detach()).view(-1),
                state=state,
                replicated=not isinstance(parameter, DTensor),
            )

    def _state_of(self, parameter: nn.Parameter, state_names: tuple[str, ...]) -> dict[str, Tensor]:
        held = self.optimizer.state[parameter]
        for key in state_names:
            if held.get(key) is None:
                held[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if state_names:  # else an optimizer that has made no update yet would miss its own count of them
            held.setdefault("step", self._count_of_updates(0, parameter))
        return held

    def _count_of_updates(self, count: int, parameter: nn.Parameter) -> Tensor:
        on_device = bool(self.optimizer.defaults.get("fused") or self.optimizer.defaults.get("capturable"))
        return torch.tensor(float(count), device=parameter.device if on_device else "cpu")

    def finish_loading(self, updates: list[int]) -> None:
        for count, group in zip(updates, self.optimizer.param_groups, strict=True):
            for parameter in group["params"]:
                if parameter in self.optimizer.state:
                    self.optimizer.state[parameter]["step"] = self._count_of_updates(count, parameter)


class DataParallel(TorchOptimizerEngine):
    """A full copy on every rank (DistributedDataParallel), or one process alone."""

    gradients_are_sharded = False

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, block_classes: set[str]) -> None:
        # torch 2.13 renames broadcast_buffers, and older ones don't know the new name; depthwise convolutions have
        # gradients whose strides DDP remarks on. Neither is news to a user.
        warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
        self.model = self.accelerator.prepare_model(model)
        self.optimizer = optimizer
        if isinstance(self.model, DistributedDataParallel):
            _settle_buckets(self.model)

    def _check_active(self) -> None:
        if self._is_distributed and not isinstance(self.model, DistributedDataParallel):
            raise UserError(
                f"engine ddp was asked for on {self.world_size} ranks, but the model is a {type(self.model).__name__}.",
                code="AT202",
            )

    def set_sync(self, last: bool) -> None:
        if isinstance(self.model, DistributedDataParallel):
            self.model.require_backward_grad_sync = last


def _settle_buckets(model: DistributedDataParallel) -> None:
    """Lets DDP lay out its gradients for reduction now, with an empty backward pass.

    It lays them out once, after the first backward pass. The place of a gradient decides in which order three or more ranks
    are summed, so the first step of every start would round differently, and a resume would not be bitwise the same.
    """
    model.reducer.prepare_for_backward([])
    torch.stack([(p * 0).sum() for p in model.parameters() if p.requires_grad]).sum().backward()
    model.reducer._rebuild_buckets()
    model.zero_grad()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _flat_offset(parameter: nn.Parameter) -> int:
    """Place of this rank's rows in the flattened parameter; FSDP2 shards along the first dimension."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    row = parameter.numel() // parameter.shape[0]
    return min(offset[0], parameter.shape[0]) * row
