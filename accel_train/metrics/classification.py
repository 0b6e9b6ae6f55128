"""Scores of classification: how often the right class comes first, or among the first few."""

from collections.abc import Sequence

import torch
from torch import Tensor


def accuracy_at(scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Share of rows, 0 to 1, whose label is among the k highest of scores (n, num_classes); labels (n,).

    A class as high as the label's counts as higher, so equal scores can't be right. A k above the number of classes is left
    out, since everything would be right. Raises ValueError for no rows and for scores that aren't finite.
    """
    ahead = num_ahead(scores, labels)
    return {k: (ahead < k).double().mean().item() for k in ks if k <= scores.shape[1]}


def mean_per_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of their rows that are right (balanced accuracy), 0 to 1. For unequal classes.

    Classes without a row have no share and are left out. Ties count as in `accuracy_at`. Raises ValueError as there.
    """
    right = (num_ahead(scores, labels) == 0).double()
    counts = torch.bincount(labels, minlength=scores.shape[1])
    right_by_class = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    right_by_class.index_add_(0, labels, right)
    present = counts > 0
    return (right_by_class[present] / counts[present]).mean().item()


def num_ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """For each row of scores (n, num_classes), how many other classes score at least as high as its label: (n,) int64."""
    if len(scores) == 0:
        raise ValueError("there are no rows to score")
    if not scores.isfinite().all():
        raise ValueError("scores hold NaN or infinite values")
    own = scores.gather(1, labels[:, None])
    return (scores >= own).sum(1) - 1
