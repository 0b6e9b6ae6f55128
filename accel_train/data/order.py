"""Which rows make up global batch k: a function of (seed, epoch, k), never of ranks, workers or history.

The shuffled order of an epoch is a keyed permutation that is evaluated where it is needed, so nothing is stored and any
step of any epoch costs the same to reach.
"""

import hashlib
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from accel_train.errors import UserError

NUM_ROUNDS = 10
MIN_WIDTH = 8
"""Tables smaller than this mix too slowly: with a 3 x 2 table some orders of five rows came 10 % too often."""


class Permutation:
    """A keyed permutation of 0 .. size - 1 that is computed, not stored.

    A Feistel network over pairs (left, right) with left < width and right < height (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002). Apart from tiny sizes, width * height exceeds `size` by less than width; values
    that fall outside are sent through again until they fall inside (cycle walking), which keeps the map one-to-one.
    """

    def __init__(self, size: int, key: bytes) -> None:
        self.size = size
        self.width = max(math.isqrt(size - 1) + 1, MIN_WIDTH)
        self.height = max(-(-size // self.width), MIN_WIDTH)
        digest = hashlib.shake_128(key).digest(8 * NUM_ROUNDS)
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Images of `positions` (any shape, integers below `size`), as int64."""
        values = self._encrypt(positions.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._encrypt(values[outside])
        return values.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        width, height = np.uint64(self.width), np.uint64(self.height)
        left, right = values % width, np.floor_divide(values, width)
        for even, odd in self._round_keys.reshape(-1, 2):
            left = (left + _mix(right ^ even) % width) % width
            right = (right + _mix(left ^ odd) % height) % height
        return right * width + left


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: each input bit changes each output bit with probability one half."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Order:
    """The global batches of a whole run, by step (from 0). No row comes twice in a batch or in an epoch.

    `shuffle=False` takes rows as stored, in every epoch. `last_batch` says what becomes of the rows left over at the
    end of an epoch: "drop" leaves them out of this epoch, "keep" makes a smaller batch of them.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        last_batch: Literal["drop", "keep"] = "drop",
    ) -> None:
        if num_samples < 1:
            raise UserError("The training split holds no samples; import a split with at least one pair.")
        if global_batch_size > num_samples:
            raise UserError(
                f"data.global_batch_size is {global_batch_size}, but the training split has only {num_samples} samples "
                f"and none may come twice in a batch. Use at most {num_samples}."
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        left_over = num_samples % global_batch_size if last_batch == "keep" else 0
        self.steps_per_epoch = num_samples // global_batch_size + (1 if left_over else 0)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that a step belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Dataset rows of global batch `step`, int64, in the order in which ranks share them out."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.global_batch_size
        positions = np.arange(start, min(start + self.global_batch_size, self.num_samples), dtype=np.int64)
        if not self.shuffle:
            return positions
        return Permutation(self.num_samples, f"order {self.seed} {epoch}".encode())(positions)


def rank_share(num_rows: int, rank: int, world_size: int, num_micro_batches: int) -> list[slice]:
    """Micro-batches of one rank as slices of a global batch: contiguous, rank by rank, micro-batch by micro-batch.

    Sizes differ by at most one over ranks, and over one rank's micro-batches. A slice is empty only where a rank has
    fewer rows than micro-batches.
    """
    start, stop = _piece(num_rows, rank, world_size)
    pieces = [_piece(stop - start, index, num_micro_batches) for index in range(num_micro_batches)]
    return [slice(start + first, start + last) for first, last in pieces]


def _piece(total: int, index: int, num_pieces: int) -> tuple[int, int]:
    """Start and stop of piece `index` when `total` is cut as evenly as possible, the longer pieces first."""
    size, longer = divmod(total, num_pieces)
    start = index * size + min(index, longer)
    return start, start + size + (1 if index < longer else 0)
