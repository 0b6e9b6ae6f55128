"""Which rows of a batch belong together, found without the mask of all pairs."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

Sharing = Literal["shared", "own"]
EVERY = (0, 2**63 - 1)


def shared_keys(sharing: Sharing, image_key: Tensor | None, text_key: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The keys by which rows belong together, (B,) each; None where each row has itself alone. Raises ValueError."""
    if sharing == "own":
        return None
    if image_key is None or text_key is None:
        raise ValueError("positives='shared' needs image_key and text_key")
    return image_key, text_key


@dataclass(frozen=True, slots=True)
class Positives:
    """Each row with itself, and with every row that agrees with it in one of the keys."""

    rows: Tensor
    """The rows that agree with another one in some key, ascending, (R,)."""
    keys: tuple[Tensor, ...]
    """Their keys, each (R,)."""

    @classmethod
    def of(cls, sharing: Sharing, image_key: Tensor | None, text_key: Tensor | None, device: torch.device) -> Self:
        keys = shared_keys(sharing, image_key, text_key)
        if keys is None:
            return cls(torch.empty(0, dtype=torch.int64, device=device), ())
        repeated = torch.zeros(len(keys[0]), dtype=torch.bool, device=device)
        for key in keys:
            _, place, count = key.unique(return_inverse=True, return_counts=True)
            repeated |= count[place] > 1
        rows = repeated.nonzero().flatten()
        return cls(rows, tuple(key[rows] for key in keys))

    def pairs(self, start: int, stop: int, columns: tuple[int, int] = EVERY) -> tuple[Tensor, Tensor]:
        """Row and column of every positive pair of the rows start to stop with the rows `columns` (start, stop).

        Both are counted from the first in question; no pair comes twice.
        """
        left, right = columns
        begin = max(start, left)
        own = torch.arange(begin, max(begin, min(stop, right)), device=self.rows.device)
        if not len(self.rows):
            return own - start, own - left
        first, last, low, high = torch.searchsorted(self.rows, own.new_tensor([start, stop, left, right])).tolist()
        together = torch.zeros(last - first, high - low, dtype=torch.bool, device=own.device)
        for key in self.keys:
            together |= key[first:last, None] == key[low:high]
        together.diagonal(first - low).fill_(False)
        row, column = together.nonzero(as_tuple=True)
        return torch.cat([own, self.rows[first + row]]) - start, torch.cat([own, self.rows[low + column]]) - left
