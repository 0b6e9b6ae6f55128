"""What is held of gradients on their way between ranks."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from accel_train.tools.dry_run.counting import Counting

FLOAT_BYTES = 4
LABEL = "reduction buffers"


def backend_copies() -> int:
    """Copies that a reduce-scatter or all-gather makes of the whole: gloo, which serves hosts without a GPU, makes one."""
    return 0 if torch.cuda.is_available() else 1


class ReduceBucket(ABC):
    """DeepSpeed's: gradients are copied into it, and reduced when the next one does not fit.

    A gradient larger than the bucket waits where autograd put it.
    """

    def __init__(self, counted: Counting, capacity: int) -> None:
        """`capacity` in numbers; the bucket itself is held elsewhere."""
        self.counted, self.capacity = counted, capacity
        self.waiting: list[Tensor] = []

    @abstractmethod
    def num_copied(self) -> int:
        """Numbers that a reduction of what waits has beside the bucket."""

    def add(self, parameter: Tensor) -> None:
        if sum(one.numel() for one in self.waiting) + parameter.numel() > self.capacity:
            self.flush()
        self.waiting.append(parameter)
        if parameter.numel() <= self.capacity:
            parameter.grad = None

    def flush(self) -> None:
        """Reduces what waits, as at the end of a backward pass."""
        if self.waiting:
            self.reduce()
        for parameter in self.waiting:
            parameter.grad = None
        self.waiting = []

    def reduce(self) -> None:
        copied = FLOAT_BYTES * self.num_copied()
        self.counted.hold(LABEL, copied)
        self.counted.hold(LABEL, -copied)


class BucketByRank(ReduceBucket):
    """ZeRO-3's: gradients are joined by rank before they are scattered. One alone is scattered as it is."""

    def num_copied(self) -> int:
        return sum(one.numel() for one in self.waiting) * (backend_copies() + (len(self.waiting) > 1))


class BucketOfSlices(ReduceBucket):
    """ZeRO-1's and -2's: slices for the ranks' partitions lie one after another; neighbours for one rank are one slice.

    Several slices are joined in a copy, which all ranks sum in place. Room for all that is kept is made after the first one.
    """

    def __init__(self, counted: Counting, capacity: int, ranks: dict[int, list[int]], kept_bytes: int) -> None:
        """`ranks`: those that have a part of a parameter in their partition, by the parameter's id."""
        super().__init__(counted, capacity)
        self.ranks, self.kept_bytes = ranks, kept_bytes
        self.is_there = self.keeps = False

    def num_copied(self) -> int:
        owners = {rank for one in self.waiting for rank in self.ranks[id(one)]}
        return sum(one.numel() for one in self.waiting) if len(owners) > 1 else 0

    def make(self) -> None:
        """Once for the backward passes of a step, or for each: until it is dropped."""
        if not self.is_there:
            self.is_there = True
            self.counted.hold(LABEL, FLOAT_BYTES * self.capacity)

    def reduce(self) -> None:
        super().reduce()
        if not self.keeps:
            self.keeps = True
            self.counted.hold("gradients", self.kept_bytes)

    def drop(self) -> None:
        self.flush()
        self.counted.hold(LABEL, -FLOAT_BYTES * self.capacity)
        self.is_there = self.keeps = False
