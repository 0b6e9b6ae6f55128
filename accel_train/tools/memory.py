"""Memory of one rank by part, from shapes alone.

Weights, gradients and optimizer state are 4 bytes for each number under every engine and precision: autocast makes its
16-bit copies during the forward pass, where they count as activations. Not counted: the CUDA context (about 0.5 GB),
workspaces of libraries, and what the allocator can't use because of fragmentation.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from accel_train.config.rules import num_micro_batches
from accel_train.config.schema import RunConfig
from accel_train.engine.buffers import REDUCE_BUCKET, ZERO3_LIVE
from accel_train.models.blocks import repeated_blocks
from accel_train.optim.optimizers import state_names
from accel_train.optim.param_groups import GroupPlan, freeze, set_train_mode
from accel_train.tasks.task import Batch, Task

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryPart:
    name: str
    num_bytes: int
    basis: str
    """What the figure is made of."""
    on_host: bool = False
    """True for memory of the CPU host, beside the device's."""


def memory_parts(
    model: nn.Module, plan: GroupPlan, task: Task, *, engine: str, world_size: int, offload: bool
) -> list[MemoryPart]:
    """What one rank holds at the peak of a step. `model` may be on the meta device."""
    trained = sum(group.num_parameters for group in plan.groups)
    config = task.config
    weights = sum(parameter.numel() for parameter in model.parameters())
    shared = f"1/{world_size} on each rank" if world_size > 1 else ""
    split = engine in ("zero3", "fsdp2")
    num_states = len(state_names(config.optimizer))
    held = weights if not split else -(-weights // world_size)
    gradients = trained if engine in ("ddp", "zero1") else -(-trained // world_size)
    states = trained if engine == "ddp" else -(-trained // world_size)
    parts = [
        _part("weights", held, shared if split else "all of them"),
        _part("gradients", gradients, shared if gradients < trained else "of what trains"),
        _part(
            "optimizer state",
            num_states * states,
            f"{num_states} numbers for each weight that trains" + (f", {shared}" if states < trained else ""),
            on_host=offload,
        ),
    ]
    if engine.startswith("zero"):
        parts += _zero_parts(engine, weights, states, offload)
    if engine == "fsdp2":
        parts.append(_fsdp2_part(model))
    rows = config.data.micro_batch_size
    batch = task.example_batch(rows)
    if batch is not None:
        how = "blocks recomputed" if config.compute.activation_checkpointing else "kept for the backward pass"
        kept = min(config.compute.kept_graphs, num_micro_batches(config, world_size))
        activations = kept * activation_bytes(model, plan, config, batch)
        which = "one micro-batch" if kept == 1 else f"{kept} micro-batches"
        parts.append(MemoryPart("activations", activations, f"of {which} of {rows}, {how}"))
    return parts


def _part(name: str, numbers: int, basis: str, *, on_host: bool = False) -> MemoryPart:
    return MemoryPart(name, numbers * FLOAT_BYTES, basis, on_host)


def _zero_parts(engine: str, weights: int, owned: int, offload: bool) -> list[MemoryPart]:
    """What DeepSpeed adds: its own copy of the weights that this rank updates, and its buffers."""
    parts = []
    if engine != "zero3" or offload:
        parts.append(_part("weights, DeepSpeed's copy", owned, "those that this rank updates", on_host=offload))
    buckets = 2 if engine == "zero3" else 1  # stage 3 reduces while it computes
    parts.append(_part("reduction buffers", buckets * REDUCE_BUCKET, f"{buckets} x reduce_bucket_size of DeepSpeed"))
    if engine == "zero3":
        parts.append(_part("gathered weights", min(weights, ZERO3_LIVE), "up to stage3_max_live_parameters"))
    return parts


def _fsdp2_part(model: nn.Module) -> MemoryPart:
    """Outside the blocks weights stay gathered during a step; of the blocks, one computes and the next one arrives."""
    blocks = [sum(parameter.numel() for parameter in block.parameters()) for _, block in repeated_blocks(model)]
    root = sum(parameter.numel() for parameter in model.parameters()) - sum(blocks)
    return _part("gathered weights", root + 2 * max(blocks, default=0), "two blocks, and all outside the blocks")


def activation_bytes(model: nn.Module, plan: GroupPlan, config: RunConfig, batch: Batch) -> int:
    """Bytes that autograd keeps from the forward pass of one micro-batch, found by a run without memory or arithmetic.

    With activation checkpointing: the inputs of all blocks, what lies outside the blocks, and the largest block's inside.
    """
    model = copy.deepcopy(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        freeze(model, plan)
        set_train_mode(model)
        saved = SavedTensors(model)
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        keep_count = torch.autograd.graph.saved_tensors_hooks(saved.record, lambda tensor: tensor)
        with keep_count, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            model(batch)
    return saved.with_checkpointing() if config.compute.activation_checkpointing else saved.total()


class SavedTensors:
    """Counts the storages that autograd keeps, apart from weights, by the block in which they were saved."""

    def __init__(self, model: nn.Module) -> None:
        held = [*model.parameters(), *model.buffers()]
        self._seen = {_storage(tensor) for tensor in held}
        self._alive: list[Tensor] = []  # so that no later tensor takes the place of a counted one
        self._block: int | None = None
        self._outside = 0
        self._inside: list[int] = []
        self._inputs: list[int] = []
        for _, block in repeated_blocks(model):
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
            block.register_forward_hook(self._leave)

    def record(self, tensor: Tensor) -> Tensor:
        """Hook for each tensor that autograd saves."""
        if _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            self._alive.append(tensor)
            size = tensor.untyped_storage().nbytes()
            if self._block is None:
                self._outside += size
            else:
                self._inside[self._block] += size
        return tensor

    def total(self) -> int:
        return self._outside + sum(self._inside)

    def with_checkpointing(self) -> int:
        return self._outside + sum(self._inputs) + max(self._inside, default=0)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        # The first is the block's own input; others, such as the mask, are the same tensor for every block.
        self._inputs.append(tensors[0].untyped_storage().nbytes() if tensors else 0)
        self._inside.append(0)
        self._block = len(self._inside) - 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._block = None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
