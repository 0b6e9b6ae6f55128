"""Batches of rows that differ in length: each is padded to the longest one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.data.dataset import Dataset

Batch = dict[str, Tensor]
WORTH_SHARING = 2**16
"""Bytes of a column from which on a copy costs more than memory of its own."""


@dataclass(frozen=True)
class Padding:
    """How the columns of a dataset are brought to one length."""

    values: Mapping[str, float] = field(default_factory=dict)
    """What fills up each column whose rows differ in length. Other columns must have rows of one shape."""
    multiple: int = 1
    """Lengths are rounded up to a multiple of this, which tensor cores and compiled kernels like."""
    limit: int | None = None
    """But not beyond this, the longest that the model can take."""


@runtime_checkable
class Padded(Protocol):
    """A dataset whose rows differ in length."""

    padding: Padding


def padding_of(dataset: Dataset) -> Padding:
    """The padding that a dataset declares; one that declares none has rows of equal shapes."""
    return dataset.padding if isinstance(dataset, Padded) else Padding()


def join(pieces: Sequence[Batch], padding: Padding, *, shared: bool = False) -> Batch:
    """One batch of the rows of all pieces, in order. Columns are (rows, length, ...); {} if there are no pieces.

    `shared`: in memory that another process can map, so that a batch which is sent to one is not copied for it.
    """
    if not pieces:
        return {}
    columns = {name: _equally_long([piece[name] for piece in pieces], name, padding) for name in pieces[0]}
    return {name: torch.cat(parts, out=_shared_like(parts) if shared else None) for name, parts in columns.items()}


def _equally_long(columns: list[Tensor], name: str, padding: Padding) -> list[Tensor]:
    if name not in padding.values:
        return columns
    longest = max(column.shape[1] for column in columns)
    length = -(-longest // padding.multiple) * padding.multiple
    if padding.limit is not None:
        length = min(length, padding.limit)
    fill = padding.values[name]
    return [_filled(column, length, fill) for column in columns]


def _shared_like(columns: list[Tensor]) -> Tensor | None:
    """Shared memory for all rows of a column; None for a small one, which is sent as soon as it is made."""
    num_bytes = sum(column.nbytes for column in columns)
    if num_bytes < WORTH_SHARING:
        return None
    storage = torch.UntypedStorage._new_shared(num_bytes, device="cpu")
    shape = (sum(len(column) for column in columns), *columns[0].shape[1:])
    return torch.empty(0, dtype=columns[0].dtype).set_(storage, 0, shape)  # type: ignore[call-overload]


def _filled(column: Tensor, length: int, fill: float) -> Tensor:
    missing = length - column.shape[1]
    return F.pad(column, (*[0] * (2 * (column.ndim - 2)), 0, missing), value=fill) if missing else column
