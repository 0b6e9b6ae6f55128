"""Memory of one rank by part, from a step that is counted on fake tensors.

Weights, gradients and optimizer state are 4 bytes for each number under every engine and precision: autocast makes its
16-bit copies during the forward pass, where they count as activations. Not counted: the CUDA context (about 0.5 GB), and
what the allocator can't use because of fragmentation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accel_train.config.schema import RunConfig
from accel_train.optim.optimizers import state_names
from accel_train.optim.param_groups import GroupPlan
from accel_train.tools.dry_run.reduction import FLOAT_BYTES
from accel_train.tools.dry_run.step import DryStep, batches_on_device

BASES = {
    "weights": "4 bytes for each number",
    "weights, DeepSpeed's copy": "those that this rank updates",
    "gathered weights": "whole for as long as they are needed",
    "frozen teacher": "4 bytes for each number, on every rank",
    "gradients": "of what trains",
    "optimizer state": "{num_states} numbers for each weight that trains",
    "reduction buffers": "gradients on their way to other ranks",
    "libraries' workspaces": "cuBLAS's, for the forward and for the backward thread",
    "batch": "{num_batches} of {micro_batch_size} samples, as many as are on the device at once",
    "activations": "of one micro-batch of {micro_batch_size}, {how}",
    "features and loss": "outputs of the global batch, and the loss over them",
    "backward pass": "gradients of activations on their way",
    "optimizer's temporaries": "made and dropped by the update",
}
"""The parts in the order of the table, with what each one's figure is made of."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    name: str
    num_bytes: int
    """At the moment of the step at which the device holds most."""
    most_bytes: int
    """At the moment at which this part is largest."""
    basis: str
    """What the figure is made of."""
    on_host: bool = False
    """True for memory of the CPU host, beside the device's."""


def memory_parts(dry: DryStep, plan: GroupPlan, config: RunConfig) -> list[MemoryPart]:
    """What one rank holds at the peak of a step."""
    split, counted = dry.split, dry.counted
    checkpointed = "blocks recomputed" if split.activation_checkpointing else "kept for the backward pass"
    num_states = len(state_names(config.optimizer))
    words: dict[str, Any] = {
        "num_states": num_states,
        "num_batches": batches_on_device(split),
        "micro_batch_size": split.micro_batch_size,
        "how": checkpointed,
    }
    parts = [
        MemoryPart(name, counted.at_peak[name], counted.most[name], basis.format(**words))
        for name, basis in BASES.items()
        if counted.most[name]
    ]
    if split.offload:
        trained = sum(group.num_parameters for group in plan.groups)
        own = -(-trained // split.world_size) * FLOAT_BYTES
        for name, copies in (
            ("weights, DeepSpeed's copy", 1),
            ("gradients", 1),
            ("optimizer state", num_states),
        ):
            size = own * copies
            parts.append(MemoryPart(name, size, size, BASES[name].format(**words), on_host=True))
    return parts


def device_bytes(parts: Iterable[MemoryPart]) -> int:
    """What the device holds at the peak."""
    return sum(part.num_bytes for part in parts if not part.on_host)
