"""What is held of gradients and weights on their way between ranks."""

import torch
from torch import Tensor

from accel_train.tools.dry_run.counting import Counting

FLOAT_BYTES = 4
LABEL = "reduction buffers"


def backend_copies() -> int:
    """Copies that a reduce-scatter or all-gather makes of the whole: gloo, which serves hosts without a GPU, makes one."""
    return 0 if torch.cuda.is_available() else 1


class ReduceBucket:
    """DeepSpeed's: gradients are copied into it, and reduced when the next one does not fit.

    A gradient larger than the bucket waits where autograd put it.
    """

    def __init__(self, counted: Counting, capacity: int, *, copies: int, under_way: int) -> None:
        """`capacity` in numbers, held elsewhere. `copies`: of what is reduced. `under_way`: reductions whose copies stay."""
        self.counted, self.capacity, self.copies, self.under_way = counted, capacity, copies, under_way
        self.waiting: list[Tensor] = []
        self.sent: list[int] = []

    def add(self, parameter: Tensor) -> None:
        if self.waiting and sum(one.numel() for one in self.waiting) + parameter.numel() > self.capacity:
            self._reduce()
        self.waiting.append(parameter)
        if parameter.numel() <= self.capacity:
            parameter.grad = None

    def _reduce(self) -> None:
        size = FLOAT_BYTES * sum(parameter.numel() for parameter in self.waiting)
        copied = size * (self.copies - (len(self.waiting) == 1))  # one gradient alone needs no joining
        self.sent.append(copied)
        self.counted.hold(LABEL, copied)
        while len(self.sent) > self.under_way:
            self.counted.hold(LABEL, -self.sent.pop(0))
        for parameter in self.waiting:
            parameter.grad = None
        self.waiting = []

    def flush(self) -> None:
        """At the end of a backward pass."""
        if self.waiting:
            self._reduce()
        self.counted.hold(LABEL, -sum(self.sent))
        self.sent = []
