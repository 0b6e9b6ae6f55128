"""Fully sharded data parallelism: FSDP2 (`fully_shard`) through Accelerate, on CUDA and on CPU."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from accel_train.engine.plain import TorchOptimizerEngine
from accel_train.engine.shards import Shard
from accel_train.errors import UserError


class FullyShardedDataParallel2(TorchOptimizerEngine):
    """Weights, gradients and optimizer state are sharded by rows; parameters are DTensors."""

    gradients_are_sharded = True

    def can_fuse(self, optimizer_name: str) -> bool:
        return optimizer_name != "sgd"  # torch has no such kernel for DTensors

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer, block_classes: set[str]) -> None:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=sorted(block_classes),
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )
        _select_fsdp(self.accelerator, plugin)
        # Accelerate swaps the optimizer's parameters for sharded ones, which needs both in one call.
        self.model, wrapped = self.accelerator.prepare(model, optimizer)
        self.optimizer = wrapped.optimizer

    def _check_active(self) -> None:
        whole = [name for name, p in self.model.named_parameters() if not isinstance(p, DTensor)]
        if whole or not isinstance(self.model, FSDPModule):
            raise UserError(
                f"engine fsdp2 was asked for, but {len(whole)} parameters are not sharded, for example {whole[:3]}.",
                code="AT202",
            )

    def set_sync(self, last: bool) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)

    def shards(self, state_names: tuple[str, ...]) -> Iterator[Shard]:
        # After an evaluation the root's parameters are still whole.
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return super().shards(state_names)


def _select_fsdp(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Makes Accelerate take its FSDP2 path, which it never does on a CPU host: it ignores the plugin in silence there."""
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert accelerator.is_fsdp2
