"""What each engine holds beside the activations, and when: weights, gradients, optimizer state, its own buffers.

The model computes on whole fake tensors under every engine. What an engine shards, gathers and frees is entered into the
count by hooks, at the moment of the step at which it happens.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from accel_train.config.schema import OptimizerSection
from accel_train.engine import buffers
from accel_train.optim.optimizers import state_names
from accel_train.optim.param_groups import GroupPlan
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, BucketOfSlices, backend_copies

PAIR = 2
"""DeepSpeed gives each rank's flat partition an even number of numbers."""


def num_bytes(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters) * FLOAT_BYTES


class Spread:
    """One engine's holdings on one rank. `trained` are the parameters with a gradient."""

    def __init__(
        self,
        model: nn.Module,
        plan: GroupPlan,
        section: OptimizerSection,
        counted: Counting,
        world_size: int,
        offload: bool,
    ) -> None:
        self.counted, self.world_size, self.offload, self.section = counted, world_size, offload, section
        self.named = dict(model.named_parameters())
        self.all = list(self.named.values())
        self.trained = [parameter for parameter in self.all if parameter.requires_grad]
        self.groups = [[self.named[name] for name in group.param_names] for group in plan.groups]
        self.num_states = len(state_names(section))
        for buffer in model.buffers():
            counted.watch(buffer, "weights")
        self.syncs = True
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self.gradient_is_there)
        self.start(model)

    def start(self, model: nn.Module) -> None:
        """Before the first forward pass of a step that is not the run's first."""

    def before_backward(self, *, last: bool) -> None:
        self.syncs = last

    def after_backward(self, *, last: bool) -> None:
        """When all gradients of a micro-batch are there."""

    def gradient_is_there(self, parameter: Tensor) -> None:
        """After a parameter's gradient was added to what was there."""
        assert parameter.grad is not None
        self.counted.watch(parameter.grad, "gradients")

    def optimizer_step(self) -> None:
        self.counted.hold("optimizer's temporaries", temporary := self.temporaries())
        self.counted.hold("optimizer's temporaries", -temporary)

    def temporaries(self) -> int:
        """Bytes that the update makes and drops. One-kernel updates make none, and Lion a direction for each group."""
        if self.section.name != "lion":
            return 0
        return self.share(max(num_bytes(group) for group in self.groups))

    def share(self, whole: int) -> int:
        """A rank's part of something that the ranks share."""
        return -(-whole // self.world_size)

    def watch_weights(self) -> None:
        for parameter in self.all:
            self.counted.watch(parameter, "weights")

    def ignore_weights(self) -> None:
        for parameter in self.all:
            self.counted.ignore(parameter)


class OneCopy(Spread):
    """One process, or DDP, where gradients lie in buckets that stay between the steps."""

    def start(self, model: nn.Module) -> None:
        self.watch_weights()
        self.counted.hold("optimizer state", self.num_states * num_bytes(self.trained))
        if self.world_size > 1:
            self.counted.hold("gradients", num_bytes(self.trained))

    def gradient_is_there(self, parameter: Tensor) -> None:
        """DDP's last backward pass copies each gradient into its bucket. Those before it leave them beside the buckets."""
        if self.world_size > 1 and self.syncs:
            parameter.grad = None
        else:
            super().gradient_is_there(parameter)


class ZeroOneOrTwo(Spread):
    """Flat weights and a copy of this rank's part. Gradients that are partly in it are kept whole after they are reduced."""

    def start(self, model: nn.Module) -> None:
        self.watch_weights()
        self.partitions = [
            PAIR * -(-sum(one.numel() for one in group) // (PAIR * self.world_size)) for group in self.groups
        ]
        own = FLOAT_BYTES * sum(self.partitions)
        if not self.offload:
            self.counted.hold("weights, DeepSpeed's copy", own)
            self.counted.hold("optimizer state", self.num_states * own)
        # Offloaded gradients go to the CPU through a buffer that has room for the largest.
        of_largest = max((one.numel() for one in self.trained), default=0)
        self.counted.hold("reduction buffers", FLOAT_BYTES * of_largest if self.offload else 0)
        ranks = self.ranks_by_parameter()
        self.kept_bytes = 0 if self.offload else num_bytes([one for one in self.trained if 0 in ranks[id(one)]])
        self.bucket = BucketOfSlices(self.counted, buffers.REDUCE_BUCKET, ranks, self.kept_bytes)

    def ranks_by_parameter(self) -> dict[int, list[int]]:
        """The ranks whose partitions have a part of it, however small, by a parameter's id."""
        found = {}
        for group, partition in zip(self.groups, self.partitions, strict=True):
            end = 0
            for parameter in group:
                start, end = end, end + parameter.numel()
                found[id(parameter)] = list(range(start // partition, (end - 1) // partition + 1))
        return found

    def before_backward(self, *, last: bool) -> None:
        super().before_backward(last=last)
        self.bucket.make()

    def after_backward(self, *, last: bool) -> None:
        """Stage 1 reduces after the step's last pass, and keeps the bucket from its first to then."""
        if not last:
            return
        for group in self.groups:
            for parameter in group:
                if parameter.grad is not None:
                    self.bucket.add(parameter)
        self.bucket.drop()

    def optimizer_step(self) -> None:
        super().optimizer_step()
        self.counted.hold("gradients", -self.kept_bytes)
        # The updated partitions are gathered group by group.
        gathered = backend_copies() * max(num_bytes(group) for group in self.groups)
        self.counted.hold("gathered weights", gathered)
        self.counted.hold("gathered weights", -gathered)

    def temporaries(self) -> int:
        """A flat copy of a group's gradients, beside what the update makes."""
        return super().temporaries() + (0 if self.offload else FLOAT_BYTES * max(self.partitions))


class ZeroTwo(ZeroOneOrTwo):
    """Each backward pass reduces into a bucket of its own; what it keeps is added to what the passes before it kept."""

    is_later = False

    def gradient_is_there(self, parameter: Tensor) -> None:
        self.bucket.add(parameter)

    def after_backward(self, *, last: bool) -> None:
        self.bucket.drop()
        if self.is_later:
            self.counted.hold("gradients", -self.kept_bytes)
        self.is_later = True
