"""FSDP2, as Accelerate sets it up: what it gathers, prefetches, joins and keeps, read in torch.distributed.fsdp."""

from torch import nn
from transformers import PreTrainedModel

from accel_train.models.blocks import repeated_blocks
from accel_train.tools.dry_run.gathered import GatheringSpread, whole_numel
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, backend_copies
from accel_train.tools.dry_run.spread import num_bytes

WEIGHTS, REDUCTION = "gathered weights", "reduction buffers"


class FullySharded(GatheringSpread):
    """Units are the blocks, the token embeddings of a transformers model, and the rest, which is the root.

    A unit's weights arrive in a flat buffer and are copied out of it. In the forward pass the buffer lives until the next
    unit's weights have arrived. In the backward pass it is freed at once, and the unit before is already on its way. The
    root stays whole from its forward pass to the end of the next backward pass.
    """

    def start(self, model: nn.Module) -> None:
        self.ignore_weights()
        counted = self.counted
        counted.hold("weights", self.sharded(self.all))
        counted.hold("optimizer state", self.num_states * self.sharded(self.trained))
        modules = [*(block for _, block in repeated_blocks(model)), *_token_embeddings(model), model]
        self.root = len(modules) - 1
        self.watch_passes(model)
        self.units: list[list[nn.Parameter]] = []
        owned = set[int]()
        for unit, module in enumerate(modules):
            self.units.append([one for one in module.parameters() if id(one) not in owned])
            owned |= {id(one) for one in self.units[-1]}
            self.watch_module(module, unit)
        self.sizes = [self.world_size * self.sharded(unit) for unit in self.units]
        self.whole = set[int]()
        self.on_its_way = set[int]()
        self.order: list[int] = []
        self.kept = self.reducing = 0

    def sharded(self, parameters: list[nn.Parameter]) -> int:
        """Bytes of this rank's rows."""
        return FLOAT_BYTES * sum(whole_numel(one, self.world_size) for one in parameters) // self.world_size

    def pass_begins(self) -> None:
        self.order = []

    def forward_begins(self, unit: int) -> None:
        if unit not in self.whole:
            self._gather(unit)
            self.counted.hold(WEIGHTS, -self.kept)
            self.kept = self.sizes[unit]
            self._copy_out(unit)

    def forward_ends(self, unit: int, *, has_backward: bool) -> None:
        self.order.append(unit)
        if unit != self.root:
            self._reshard(unit)
        else:
            self.counted.hold(WEIGHTS, -self.kept)
            self.kept = 0

    def backward_begins(self, unit: int) -> None:
        if unit in self.begun:
            return
        self.begun.add(unit)
        if unit not in self.whole:
            if unit not in self.on_its_way:
                self._gather(unit)
            self.on_its_way.discard(unit)
            self._copy_out(unit)
            self.counted.hold(WEIGHTS, -self.sizes[unit])
        before = self.order[: self.order.index(unit)][-1:]
        for other in before:
            if other not in self.whole | self.on_its_way:
                self.on_its_way.add(other)
                self._gather(other)

    def backward_ends(self, unit: int) -> None:
        self._reshard(unit)
        if self.syncs:
            self._reduce(unit)
        self.ended.add(unit)

    def before_backward(self, *, last: bool) -> None:
        super().before_backward(last=last)
        self.begun, self.ended = set[int](), set[int]()

    def after_backward(self, *, last: bool) -> None:
        """Units without a gradient for what entered them end here: the root, and what reads the batch itself."""
        for unit in range(len(self.units)):
            if unit not in self.ended:
                self.backward_ends(unit)
        for unit in self.on_its_way:
            self.counted.hold(WEIGHTS, -self.sizes[unit])
        self.on_its_way = set()
        self.counted.hold(REDUCTION, -self.reducing)
        self.reducing = 0

    def _gather(self, unit: int) -> None:
        copies = backend_copies() * self.sizes[unit]
        self.counted.hold(WEIGHTS, self.sizes[unit] + copies)
        self.counted.hold(WEIGHTS, -copies)

    def _copy_out(self, unit: int) -> None:
        self.counted.hold(WEIGHTS, self.sizes[unit])
        self.whole.add(unit)

    def _reshard(self, unit: int) -> None:
        if unit in self.whole:
            self.counted.hold(WEIGHTS, -self.sizes[unit])
            self.whole.discard(unit)

    def _reduce(self, unit: int) -> None:
        """Joins a unit's gradients by rank. What was joined for the unit before lives until then."""
        own = [parameter for parameter in self.units[unit] if parameter.grad is not None]
        self.counted.hold(REDUCTION, -self.reducing)
        share = self.sharded(own)
        self.reducing = self.world_size * share
        self.counted.hold(REDUCTION, self.reducing)
        for parameter in own:
            parameter.grad = None
        self.counted.hold("gradients", share)
        copies = backend_copies() * self.reducing
        self.counted.hold(REDUCTION, copies)
        self.counted.hold(REDUCTION, -copies)

    def temporaries(self) -> int:
        if self.section.name == "sgd":  # torch has no one-kernel SGD for DTensors
            return self.share(num_bytes(self.trained))
        return super().temporaries()


def _token_embeddings(model: nn.Module) -> list[nn.Module]:
    """What Accelerate makes a unit of its own beside the blocks."""
    return [model.get_input_embeddings()] if isinstance(model, PreTrainedModel) else []
