"""Contrastive losses over a whole batch, computed by chunks of rows.

`anchors` makes one call account for some rows only, so that ranks can share the work: over a partition of the rows, the
losses and the gradients of the calls add up to those of the whole batch. The sigmoid loss counts each pair once, so it can
be cut both ways, into blocks of images and of texts.
"""

from functools import partial

import torch
from torch import Tensor

from accel_train.losses.both_ways import BothWays
from accel_train.losses.chunked import CHUNK_SIZE, PairLoss, check_pairs, chunked_loss, in_full_precision
from accel_train.losses.fused import FusedInfoNCE, obstacle
from accel_train.losses.positives import Positives, Sharing, shared_keys


def info_nce(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    positives: Sharing = "own",
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
    anchors: tuple[int, int] | None = None,
) -> Tensor:
    """Symmetric cross-entropy between images and texts (van den Oord et al. 2018; Radford et al. 2021, figure 3).

    image_features, text_features: (B, D), L2-normalised, row i of one belonging to row i of the other. logit_scale: (1,)
    or 0-d, the factor itself, not its log. image_key, text_key: (B,) integers that tell equal images and equal texts,
    read for `positives="shared"`: the target of a row is then uniform over all its positives (Khosla et al. 2020).
    label_smoothing e: target (1 - e) x target + e / B. chunk_size None: by fused kernels where nothing is in their way, else
    by chunks of CHUNK_SIZE rows. Returns the mean over the 2B rows, 0-d, in fp32 (fp64 for fp64).
    """
    check_pairs(image_features, text_features)
    device, everything = image_features.device, (0, len(image_features))
    tensors = [image_features, text_features, logit_scale]
    if chunk_size is None and image_features.dtype != torch.float64 and obstacle(device, len(image_features)) is None:
        keys = shared_keys(positives, image_key, text_key)
        return in_full_precision(FusedInfoNCE, tensors, keys, label_smoothing, anchors or everything)
    chunk_size = chunk_size or CHUNK_SIZE
    pairs = Positives.of(positives, image_key, text_key, device)
    if anchors in (None, everything):
        return in_full_precision(BothWays, tensors, pairs, label_smoothing, chunk_size)
    row_loss = partial(_cross_entropy_rows, label_smoothing=label_smoothing)
    loss = PairLoss(row_loss, partial(_pairs, pairs), both_directions=True, num_rows=len(image_features))
    return chunked_loss(image_features, text_features, logit_scale, None, loss, anchors or everything, chunk_size)


def info_nce_in_words(device: torch.device, num_rows: int, chunk_size: int | None) -> str:
    """How `info_nce` goes about a batch of so many rows, and why."""
    reason = "loss.chunk_size asks for it" if chunk_size else obstacle(device, num_rows)
    if reason is None:
        return "InfoNCE runs in fused kernels"
    return f"InfoNCE runs by chunks of {chunk_size or CHUNK_SIZE} rows: {reason}"


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    positives: Sharing = "own",
    label_smoothing: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    anchors: tuple[int, int] | None = None,
) -> Tensor:
    """Sum over all pairs of -log sigmoid(z (s cos + b)), divided by B; z is +1 for positives, else -1 (Zhai et al. 2023).

    Arguments as in `info_nce`. Each pair is counted once, on its image's row. label_smoothing e: the target of a pair is
    1 - e/2 or e/2 instead of 1 or 0.
    """
    check_pairs(image_features, text_features)
    everything = (0, len(text_features))
    return sigmoid_loss_of_block(
        image_features if anchors is None else image_features[slice(*anchors)],
        text_features,
        logit_scale,
        logit_bias,
        image_rows=anchors or everything,
        text_rows=everything,
        num_rows=len(text_features),
        image_key=image_key,
        text_key=text_key,
        positives=positives,
        label_smoothing=label_smoothing,
        chunk_size=chunk_size,
    )


def sigmoid_loss_of_block(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    image_rows: tuple[int, int],
    text_rows: tuple[int, int],
    num_rows: int,
    image_key: Tensor | None = None,
    text_key: Tensor | None = None,
    positives: Sharing = "own",
    label_smoothing: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
) -> Tensor:
    """What the pairs of some images with some texts add to `sigmoid_loss` of a batch of num_rows (its section 3.3).

    image_features (N, D) are of the rows image_rows (start, stop), text_features (M, D) of the rows text_rows. These and the
    keys need not be counted over the whole batch: over any of its rows that these are among.
    """
    pairs = Positives.of(positives, image_key, text_key, image_features.device)
    row_loss = partial(_sigmoid_rows, label_smoothing=label_smoothing)
    targets = partial(_pairs_of_block, pairs, image_rows[0], text_rows)
    loss = PairLoss(row_loss, targets, both_directions=False, num_rows=num_rows)
    rows = (0, len(image_features))
    return chunked_loss(image_features, text_features, logit_scale, logit_bias, loss, rows, chunk_size)


def _pairs(positives: Positives, start: int, stop: int, direction: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of positive pairs, for both directions the same."""
    return positives.pairs(start, stop)


def _pairs_of_block(
    positives: Positives, first_row: int, columns: tuple[int, int], start: int, stop: int, direction: int
) -> tuple[Tensor, Tensor]:
    """As `_pairs`, of rows that are counted from `first_row`, with these columns alone."""
    return positives.pairs(first_row + start, first_row + stop, columns)


def _cross_entropy_rows(logits: Tensor, pairs: tuple[Tensor, ...], label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross-entropy against uniform targets, and its gradient for the logits: softmax - target."""
    row, column = pairs
    log_total = logits.logsumexp(1)
    positive = logits[row, column]
    # index_add_ would sum in an order of its own on a GPU.
    count = torch.zeros_like(log_total).index_put_((row,), torch.ones_like(positive), accumulate=True)
    share = (1 - label_smoothing) / count[row]
    wanted = torch.zeros_like(log_total).index_put_((row,), positive * share, accumulate=True)
    if label_smoothing:
        wanted += label_smoothing * logits.mean(1)
    # Row by row: the difference of two sums over all rows would lose what a small loss consists of.
    loss = (log_total - wanted).sum()
    grad = logits.sub_(log_total[:, None]).exp_()
    grad[row, column] -= share
    return loss, grad.sub_(label_smoothing / logits.shape[1]) if label_smoothing else grad


def _sigmoid_rows(logits: Tensor, pairs: tuple[Tensor, ...], label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over pairs of softplus(logit) - target x logit, and its gradient for the logits: sigmoid - target."""
    losses = torch.nn.functional.softplus(logits)
    losses[pairs] -= (1 - label_smoothing) * logits[pairs]
    if label_smoothing:
        losses.sub_(logits, alpha=label_smoothing / 2)
    grad = logits.sigmoid_()
    grad[pairs] -= 1 - label_smoothing
    return losses.sum(), grad.sub_(label_smoothing / 2) if label_smoothing else grad
