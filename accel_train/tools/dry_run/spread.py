"""What each engine holds beside the activations, and when: weights, gradients, optimizer state, its own buffers.

The model computes on whole fake tensors under every engine. What an engine shards, gathers and frees is entered into the
count by hooks, at the moment of the step at which it happens.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from accel_train.config.schema import OptimizerSection
from accel_train.engine.buffers import REDUCE_BUCKET
from accel_train.optim.optimizers import state_names
from accel_train.optim.param_groups import GroupPlan
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.reduction import FLOAT_BYTES, ReduceBucket


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
    """Flat weights and, of this rank's part, a copy; gradients pass through a bucket that is made for each backward."""

    stage = 1

    def start(self, model: nn.Module) -> None:
        self.watch_weights()
        own = self.share(num_bytes(self.trained))
        if not self.offload:
            self.counted.hold("weights, DeepSpeed's copy", own)
            self.counted.hold("optimizer state", self.num_states * own)
        self.bucket = ReduceBucket(self.counted, REDUCE_BUCKET, copies=1, under_way=0)

    def before_backward(self, *, last: bool) -> None:
        super().before_backward(last=last)
        self.counted.hold("reduction buffers", FLOAT_BYTES * REDUCE_BUCKET)
        if self.stage == 2:
            self.counted.hold("gradients", FLOAT_BYTES * self.touched())

    def touched(self) -> int:
        """Numbers of the parameters that have a part, however small, in rank 0's partition: stage 2 keeps them whole."""
        total = 0
        for group in self.groups:
            own = self.share(sum(parameter.numel() for parameter in group))
            before = 0
            for parameter in group:
                total += parameter.numel() if before < own else 0
                before += parameter.numel()
        return total

    def gradient_is_there(self, parameter: Tensor) -> None:
        if self.stage == 2:
            self.bucket.add(parameter)
        else:
            super().gradient_is_there(parameter)

    def after_backward(self, *, last: bool) -> None:
        if self.stage == 1 and last:
            for parameter in self.trained:
                parameter.grad = None
            self.counted.hold("gradients", self.share(num_bytes(self.trained)))
        self.bucket.flush()
        self.counted.hold("reduction buffers", -FLOAT_BYTES * REDUCE_BUCKET)

    def temporaries(self) -> int:
        return super().temporaries() + self.share(max(num_bytes(group) for group in self.groups))


class ZeroTwo(ZeroOneOrTwo):
    stage = 2
