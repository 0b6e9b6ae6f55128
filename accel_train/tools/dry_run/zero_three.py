"""DeepSpeed's ZeRO-3: small parameters are whole on every rank, and the others for as long as its coordinator wants."""

from torch import Tensor, nn

from accel_train.engine import buffers
from accel_train.tools.dry_run.coordinator import PERSISTENT, Coordinator
from accel_train.tools.dry_run.gathered import GatheringSpread
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, BucketByRank
from accel_train.tools.dry_run.sharded_linear import read_weights_again
from accel_train.tools.dry_run.spread import num_bytes


class ZeroThree(GatheringSpread):
    def start(self, model: nn.Module) -> None:
        self.ignore_weights()
        counted = self.counted
        own = self.share(num_bytes(self.trained))
        self.small = num_bytes([parameter for parameter in self.all if parameter.numel() <= PERSISTENT])
        counted.hold("weights", self.share(num_bytes(self.all)))
        counted.hold("gathered weights", self.small)
        if not self.offload:
            counted.hold("weights, DeepSpeed's copy", own)
            counted.hold("optimizer state", self.num_states * own)
            counted.hold("gradients", own)
        counted.hold("reduction buffers", FLOAT_BYTES * buffers.REDUCE_BUCKET)
        self.bucket = BucketByRank(counted, buffers.REDUCE_BUCKET)
        owners = [(module, list(module.parameters(recurse=False))) for module in model.modules()]
        owners = [(module, own) for module, own in owners if own]
        self.coordinator = Coordinator(counted, [own for _, own in owners], buffers.ZERO3_LIVE)
        self.last = 2 * len(owners) - 1
        self.in_backward = set[int]()
        read_weights_again(model)
        self.watch_passes(model)
        for place, (module, _) in enumerate(owners):
            self.watch_module(module, place)

    def pass_begins(self) -> None:
        self.coordinator.begin_pass()

    def forward_begins(self, unit: int) -> None:
        self.coordinator.fetch(unit)

    def forward_ends(self, unit: int, *, has_backward: bool) -> None:
        if not has_backward:
            self.coordinator.never(self.last - unit)
        self.coordinator.release(unit)

    def backward_begins(self, unit: int) -> None:
        if unit not in self.in_backward:
            self.in_backward.add(unit)
            self.coordinator.fetch(self.last - unit)

    def backward_ends(self, unit: int) -> None:
        if unit in self.in_backward:
            self.in_backward.discard(unit)
            self.coordinator.release(self.last - unit)

    def gradient_is_there(self, parameter: Tensor) -> None:
        self.bucket.add(parameter)

    def after_backward(self, *, last: bool) -> None:
        """Modules without a gradient for what entered them, as embeddings, let go of their weights here."""
        self.bucket.flush()
        for unit in self.in_backward:
            self.coordinator.drop(self.last - unit)
        self.in_backward = set()

    def optimizer_step(self) -> None:
        self.coordinator.drop_all()
        self.counted.hold("gathered weights", -self.small)
        super().optimizer_step()

    def temporaries(self) -> int:
        """A flat copy of a group's gradients, beside what the update makes."""
        flat = 0 if self.offload else self.share(max(num_bytes(group) for group in self.groups))
        return super().temporaries() + flat
