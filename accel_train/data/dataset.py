"""What the loader needs to know of a dataset."""

from typing import Protocol

from torch import Tensor


class UnreadableSample(Exception):
    """One sample can't be read: the message names it and says why."""


class Dataset(Protocol):
    """Map-style: any row at any time, so order and position are the sampler's business alone. Must pickle (spawn)."""

    fingerprint: str
    """Digest of the rows' identity; a resumed run refuses another dataset."""

    def __len__(self) -> int: ...

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        """Columns of one row. `epoch` keys the augmentation; None means none. Raises UnreadableSample."""
        ...
