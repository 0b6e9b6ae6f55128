"""What engines hold that gather a block's weights when it computes: FSDP2 and ZeRO-3."""

from typing import Any

from torch import Tensor, nn

from accel_train.engine.buffers import REDUCE_BUCKET, ZERO3_LIVE
from accel_train.models.blocks import repeated_blocks
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, ReduceBucket, backend_copies
from accel_train.tools.dry_run.spread import Spread, num_bytes

PERSISTENT = 100_000
"""DeepSpeed's `stage3_param_persistence_threshold`: smaller parameters stay whole on every rank."""
UNDER_WAY = 2
"""Reductions of ZeRO-3 whose copies are there at once: DeepSpeed waits for the one before them."""


class ByBlocks(Spread):
    """Weights are gathered for a block when it computes, forward and backward, and gradients reduced when it is through."""

    def start(self, model: nn.Module) -> None:
        self.ignore_weights()
        self.units: list[list[nn.Parameter]] = []
        owned = set[int]()
        self.unit_of: dict[int, int] = {}
        for _, block in repeated_blocks(model):
            unit = [parameter for parameter in block.parameters() if id(parameter) not in owned]
            owned |= {id(parameter) for parameter in unit}
            self._hook(block, len(self.units))
            self.units.append(unit)
        self.root = len(self.units)
        self.units.append([parameter for parameter in self.all if id(parameter) not in owned])
        for index, unit in enumerate(self.units):
            self.unit_of |= {id(parameter): index for parameter in unit}
        self.waiting = [0] * len(self.units)
        self.gathered: int | None = None
        self.hold_state()

    def hold_state(self) -> None:
        raise NotImplementedError

    def gather(self, unit: int) -> None:
        raise NotImplementedError

    def reshard(self) -> None:
        raise NotImplementedError

    def _hook(self, block: nn.Module, unit: int) -> None:
        def forward_begins(module: nn.Module, args: Any) -> None:
            if self.gathered != unit:
                self.reshard()
                self.gather(unit)

        def forward_ends(module: nn.Module, args: Any, output: Any) -> None:
            self.reshard()
            first = output if isinstance(output, Tensor) else output[0]
            if isinstance(first, Tensor) and first.requires_grad:
                first.register_hook(lambda gradient: backward_begins())

        def backward_begins() -> None:
            if self.gathered != unit:
                self.reshard()
                self.gather(unit)

        block.register_forward_pre_hook(forward_begins)
        block.register_forward_hook(forward_ends)

    def before_backward(self, *, last: bool) -> None:
        super().before_backward(last=last)
        self.waiting = [sum(parameter.requires_grad for parameter in unit) for unit in self.units]

    def after_backward(self, *, last: bool) -> None:
        self.reshard()


class FullySharded(ByBlocks):
    """FSDP2. The parameters outside the blocks stay gathered from the first forward pass of a step to its end."""

    def hold_state(self) -> None:
        counted = self.counted
        counted.hold("weights", self.share(num_bytes(self.all)))
        counted.hold("optimizer state", self.share(self.num_states * num_bytes(self.trained)))
        counted.hold("gathered weights", num_bytes(self.units[self.root]))
        self.reducing = 0
        self.sharded_gradients = 0

    def gather(self, unit: int) -> None:
        """The unit's weights, and the buffer that they arrived in, which lives until the next unit has arrived."""
        self.gathered = unit
        size = num_bytes(self.units[unit])
        self.counted.hold("gathered weights", (2 + backend_copies()) * size)
        self.counted.hold("gathered weights", -backend_copies() * size)

    def reshard(self) -> None:
        if self.gathered is not None:
            self.counted.hold("gathered weights", -2 * num_bytes(self.units[self.gathered]))
            self.gathered = None

    def gradient_is_there(self, parameter: Tensor) -> None:
        super().gradient_is_there(parameter)
        unit = self.unit_of[id(parameter)]
        self.waiting[unit] -= 1
        if self.syncs and self.waiting[unit] == 0:
            self._reduce(unit)

    def after_backward(self, *, last: bool) -> None:
        super().after_backward(last=last)
        if last:
            for unit, waiting in enumerate(self.waiting):
                if waiting:
                    self._reduce(unit)
            self.counted.hold("reduction buffers", -self.reducing)
            self.reducing = 0

    def _reduce(self, unit: int) -> None:
        own = [parameter for parameter in self.units[unit] if parameter.grad is not None]
        size = num_bytes(own)
        self.counted.hold("reduction buffers", size * (1 + backend_copies()))
        self.counted.hold("reduction buffers", -size * backend_copies() - self.reducing)
        self.reducing = size
        for parameter in own:
            parameter.grad = None
        self.counted.hold("gradients", self.share(size))
        self.waiting[unit] = 0

    def temporaries(self) -> int:
        if self.section.name == "sgd":  # torch has no one-kernel SGD for DTensors
            return self.share(num_bytes(self.trained))
        return super().temporaries()


class ZeroThree(ByBlocks):
    """DeepSpeed's stage 3. Small parameters are never sharded, and weights stay gathered while there is room for them."""

    def hold_state(self) -> None:
        counted = self.counted
        small = [parameter for parameter in self.all if parameter.numel() <= PERSISTENT]
        own = self.share(num_bytes(self.trained))
        counted.hold("weights", self.share(num_bytes(self.all)))
        counted.hold("gathered weights", num_bytes(small))
        if not self.offload:
            counted.hold("weights, DeepSpeed's copy", own)
            counted.hold("optimizer state", self.num_states * own)
            counted.hold("gradients", own)
        counted.hold("reduction buffers", FLOAT_BYTES * REDUCE_BUCKET)
        large = [num_bytes([parameter]) for parameter in self.all if parameter.numel() > PERSISTENT]
        # The limit is for what stays gathered; what a module needs comes on top of it.
        counted.hold("gathered weights", min(sum(large), FLOAT_BYTES * ZERO3_LIVE + max(large, default=0)))
        # The gradients are joined by rank before they are sent.
        self.bucket = ReduceBucket(counted, REDUCE_BUCKET, copies=1 + backend_copies(), under_way=UNDER_WAY)

    def gather(self, unit: int) -> None:
        self.gathered = unit

    def reshard(self) -> None:
        self.gathered = None

    def gradient_is_there(self, parameter: Tensor) -> None:
        self.bucket.add(parameter)

    def after_backward(self, *, last: bool) -> None:
        super().after_backward(last=last)
        self.bucket.flush()

    def temporaries(self) -> int:
        """A flat copy of a group's gradients, beside what the update makes."""
        return super().temporaries() + self.share(max(num_bytes(group) for group in self.groups))
