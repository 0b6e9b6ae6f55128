"""Engines that gather weights when a module computes with them: when that begins and ends, forward and backward."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from accel_train.tools.dry_run.counting import tensors
from accel_train.tools.dry_run.spread import Spread


class GatheringSpread(Spread):
    learns = True
    """Whether the forward pass that is under way leaves a graph."""

    def watch_passes(self, model: nn.Module) -> None:
        def pass_begins(module: nn.Module, args: Any) -> None:
            self.learns = torch.is_grad_enabled()
            self.pass_begins()

        model.register_forward_pre_hook(pass_begins)

    def watch_module(self, module: nn.Module, unit: int) -> None:
        """Calls the four last methods below, with this unit, at a module's forward and backward passes."""

        def forward_begins(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.forward_begins(unit)
            for entering in tensors((args, kwargs)):
                if entering.requires_grad:
                    entering.register_hook(lambda gradient: self.backward_ends(unit))
                    return

        def forward_ends(module: nn.Module, args: Any, output: Any) -> None:
            nodes = [leaving.grad_fn for leaving in tensors(output) if leaving.grad_fn is not None]
            self.forward_ends(unit, has_backward=bool(nodes) or not self.learns)
            for node in nodes:
                # A hook of the node, not of the tensor: those of the modules that it enters come first.
                node.register_prehook(lambda gradients: self.backward_begins(unit))

        module.register_forward_pre_hook(forward_begins, with_kwargs=True)
        module.register_forward_hook(forward_ends)

    @abstractmethod
    def pass_begins(self) -> None:
        """Before a forward pass of the whole model."""

    @abstractmethod
    def forward_begins(self, unit: int) -> None: ...

    @abstractmethod
    def forward_ends(self, unit: int, *, has_backward: bool) -> None:
        """`has_backward` is False for frozen modules behind no other, in a pass of which others have one."""

    @abstractmethod
    def backward_begins(self, unit: int) -> None:
        """When a gradient of the first of its outputs is there; more than once where it has several."""

    @abstractmethod
    def backward_ends(self, unit: int) -> None:
        """When the gradient of its first input is there; never where no input has one."""


def whole_numel(parameter: Tensor, world_size: int) -> int:
    """Numbers of a parameter whose first dimension is filled up so that every rank has as many rows."""
    rows = parameter.shape[0]
    return -(-rows // world_size) * world_size * (parameter.numel() // rows)
