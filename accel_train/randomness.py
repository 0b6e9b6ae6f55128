"""Random draws of the forward pass as functions of what is computed, so that no generator state is ever saved."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from accel_train.models.batch_norm import batch_statistics
from accel_train.models.dropout import per_sample_masks

_MASK = (1 << 64) - 1


def mixed(*numbers: int) -> int:
    """A 64-bit hash of a tuple of integers, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_everything(key: int) -> None:
    """Python, NumPy, torch on the CPU and on every CUDA device.

    torch.manual_seed keeps the call for kinds of devices that are not in use yet, with the stack that it came from: a
    millisecond, in each pass. So it is called only where CUDA is yet to come.
    """
    random.seed(key)
    np.random.seed(key % 2**32)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(key % 2**63)
    elif torch.cuda.is_available():
        torch.manual_seed(key % 2**63)
    torch.default_generator.manual_seed(key % 2**63)


@contextmanager
def forward_randomness(*, seed: int, step: int, position: int, sample_ids: Tensor | None) -> Iterator[None]:
    """Makes dropout inside a function of its arguments: enter it again to draw the same masks, and BatchNorm counts once.

    `position` is the place of the micro-batch's first row in the global batch, so at a fixed micro-batch size the draws
    don't depend on how micro-batches are dealt to ranks. With `sample_ids` every row draws by its sample id alone.
    """
    seed_everything(mixed(seed, step, position))
    masks = nullcontext() if sample_ids is None else per_sample_masks(sample_ids, mixed(seed, step))
    with masks, batch_statistics(step, position):
        yield
