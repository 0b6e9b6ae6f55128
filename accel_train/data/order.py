"""Which rows make up global batch k: a function of (seed, epoch, k), never of ranks, workers or history.

The shuffled order of an epoch is a keyed permutation that is evaluated where it is needed, so nothing is stored and any
step of any epoch costs the same to reach. With buckets, the samples of a window of global batches are sorted by length
before they are cut into batches; a step then costs as much as its window.
"""

import hashlib
import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Buckets:
    """What global batches of samples of like length are made from."""

    lengths: np.ndarray
    """Of every sample, int32, in any unit."""
    window: int
    """Global batches whose samples are sorted by length together. 1 sorts inside each batch alone."""


class Order:
    """The global batches of a whole run, by step (from 0). No row comes twice in a batch or in an epoch.

    `shuffle=False` takes rows as stored, in every epoch. `last_batch` says what becomes of the rows left over at the
    end of an epoch: "drop" leaves them out of this epoch, "keep" makes a smaller batch of them. With `buckets` each global
    batch holds samples of like length, from short to long; the batches of a window come in shuffled order.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        last_batch: Literal["drop", "keep"] = "drop",
        buckets: Buckets | None = None,
    ) -> None:
        if num_samples < 1:
            raise UserError("The training split holds no samples; import a split with at least one of them.")
        if global_batch_size > num_samples:
            raise UserError(
                f"data.global_batch_size is {global_batch_size}, but the training split has only {num_samples} samples "
                f"and none may come twice in a batch. Use at most {num_samples}.",
                code="AT111",
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.buckets = buckets
        self.num_full_batches = num_samples // global_batch_size
        left_over = num_samples % global_batch_size if last_batch == "keep" else 0
        self.steps_per_epoch = self.num_full_batches + (1 if left_over else 0)
        self._sorted: tuple[tuple[int, int], np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that a step belongs to."""
        return step // self.steps_per_epoch

    def num_rows(self, step: int) -> int:
        """Rows of global batch `step`, without finding them out."""
        start = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, self.num_samples - start)

    def rows(self, step: int) -> np.ndarray:
        """Dataset rows of global batch `step`, int64, in the order in which ranks share them out."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self.buckets is not None and index < self.num_full_batches:
            window, slot = divmod(index, self.buckets.window)
            return self._window(self.buckets, epoch, window)[slot]
        start = index * self.global_batch_size
        rows = self._shuffled(epoch, start, start + self.num_rows(step))
        return rows if self.buckets is None else _by_length(rows, self.buckets.lengths)

    def _shuffled(self, epoch: int, start: int, stop: int) -> np.ndarray:
        positions = np.arange(start, stop, dtype=np.int64)
        if not self.shuffle:
            return positions
        return Permutation(self.num_samples, f"order {self.seed} {epoch}".encode())(positions)

    def _window(self, buckets: Buckets, epoch: int, window: int) -> np.ndarray:
        """The batches of a window, (number of batches, global_batch_size). The last one asked for is kept."""
        if self._sorted is None or self._sorted[0] != (epoch, window):
            first = window * buckets.window
            num_batches = min(buckets.window, self.num_full_batches - first)
            size = self.global_batch_size
            rows = self._shuffled(epoch, first * size, (first + num_batches) * size)
            batches = _by_length(rows, buckets.lengths).reshape(num_batches, size)
            turns = Permutation(num_batches, f"window {self.seed} {epoch} {window}".encode())
            self._sorted = (epoch, window), batches[turns(np.arange(num_batches))]
        return self._sorted[1]


def _by_length(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """From short to long; rows of one length stay in their shuffled order."""
    return rows[np.argsort(lengths[rows], kind="stable")]


def rank_share(
    num_rows: int, rank: int, world_size: int, num_micro_batches: int, *, interleaved: bool = False
) -> list[slice]:
    """Micro-batches of one rank as slices of a global batch: contiguous, rank by rank, micro-batch by micro-batch.

    `interleaved` deals the micro-batches out in turn instead, so that micro-batches j of all ranks are neighbours. Where
    rows are sorted by length, every rank then has short and long ones, and all are at like lengths at the same time.

    Sizes differ by at most one over ranks, and over one rank's micro-batches. A slice is empty only where a rank has
    fewer rows than micro-batches.
    """
    if interleaved:
        num_pieces = num_micro_batches * world_size
        return [slice(*_piece(num_rows, j * world_size + rank, num_pieces)) for j in range(num_micro_batches)]
    start, stop = _piece(num_rows, rank, world_size)
    pieces = [_piece(stop - start, index, num_micro_batches) for index in range(num_micro_batches)]
    return [slice(start + first, start + last) for first, last in pieces]


def _piece(total: int, index: int, num_pieces: int) -> tuple[int, int]:
    """Start and stop of piece `index` when `total` is cut as evenly as possible, the longer pieces first."""
    size, longer = divmod(total, num_pieces)
    start = index * size + min(index, longer)
    return start, start + size + (1 if index < longer else 0)
