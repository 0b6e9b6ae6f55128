"""Contrastive losses over a whole batch, computed by chunks of rows.

`anchors` makes one call account for some rows only, so that ranks can share the work: over a partition of the rows, the
losses and the gradients of the calls add up to those of the whole batch.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from accel_train.losses.chunked import PairLoss, chunked_loss

Positives = Literal["shared", "own"]


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    positives: Positives = "own",
    label_smoothing: float = 0.0,
    chunk_size: int = 1024,
    anchors: tuple[int, int] | None = None,
) -> Tensor:
    """Symmetric cross-entropy between images and texts (van den Oord et al. 2018; Radford et al. 2021, figure 3).

    image_features, text_features: (B, D), L2-normalised, row i of one belonging to row i of the other. logit_scale: (1,)
    or 0-d, the factor itself, not its log. image_key, text_key: (B,) integers that tell equal images and equal texts,
    read for `positives="shared"`: the target of a row is then uniform over all its positives (Khosla et al. 2020).
    label_smoothing e: target (1 - e) x target + e / B. Returns the mean over the 2B rows, 0-d, in fp32 (fp64 for fp64).
    """
    keys = _positive_keys(positives, image_key, text_key)
    rows = anchors or (0, len(image_features))
    loss = PairLoss(
        partial(_cross_entropy_rows, label_smoothing=label_smoothing),
        partial(_positive_pairs, keys, len(image_features), image_features.device),
        both_directions=True,
    )
    return chunked_loss(image_features, text_features, logit_scale, None, loss, rows, chunk_size)


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    positives: Positives = "own",
    label_smoothing: float = 0.0,
    chunk_size: int = 1024,
    anchors: tuple[int, int] | None = None,
) -> Tensor:
    """Sum over all pairs of -log sigmoid(z (s cos + b)), divided by B; z is +1 for positives, else -1 (Zhai et al. 2023).

    Arguments as in `info_nce`. Each pair is counted once, on its image's row. label_smoothing e: the target of a pair is
    1 - e/2 or e/2 instead of 1 or 0.
    """
    keys = _positive_keys(positives, image_key, text_key)
    rows = anchors or (0, len(image_features))
    loss = PairLoss(
        partial(_sigmoid_rows, label_smoothing=label_smoothing),
        partial(_positive_pairs, keys, len(image_features), image_features.device),
        both_directions=False,
    )
    return chunked_loss(image_features, text_features, logit_scale, logit_bias, loss, rows, chunk_size)


def _positive_keys(positives: Positives, image_key: Tensor | None, text_key: Tensor | None) -> tuple[Tensor, ...]:
    if positives == "own":
        return ()
    if image_key is None or text_key is None:
        raise ValueError("positives='shared' needs image_key and text_key")
    return image_key, text_key


def _positive_pairs(
    keys: tuple[Tensor, ...], total: int, device: torch.device, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """(stop - start, total) mask of the pairs that belong together, for both directions the same."""
    columns = torch.arange(total, device=device)
    mask = columns[start:stop, None] == columns
    for key in keys:
        mask |= key[start:stop, None] == key
    return mask, mask


def _cross_entropy_rows(logits: Tensor, positive: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross-entropy against uniform targets, and its gradient for the logits: softmax - target."""
    target = positive.to(logits.dtype)
    target *= (1 - label_smoothing) / target.sum(1, keepdim=True)
    target += label_smoothing / logits.shape[1]
    log_total = logits.logsumexp(1, keepdim=True)
    # Row by row: the difference of two sums over all rows would lose what a small loss consists of.
    loss = (log_total - (target * logits).sum(1, keepdim=True)).sum()
    return loss, (logits - log_total).exp_().sub_(target)


def _sigmoid_rows(logits: Tensor, positive: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over pairs of softplus(logit) - target x logit, and its gradient for the logits: sigmoid - target."""
    target = positive.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    loss = (torch.nn.functional.softplus(logits) - target * logits).sum()
    return loss, logits.sigmoid().sub_(target)
