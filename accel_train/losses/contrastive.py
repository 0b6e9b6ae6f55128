"""Contrastive losses over a whole batch, computed by chunks of rows.

The B x B similarity matrix never exists in one piece: each chunk of rows gives its share of the loss and of the gradient
in closed form, and is dropped. The gradient is kept in the size of the features and scaled in the backward pass.

`anchors` makes one call account for some rows only, so that ranks can share the work: over a partition of the rows, the
losses and the gradients of the calls add up to those of the whole batch.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Positives = Literal["shared", "own"]
RowLoss = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


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
    settings = _Settings(_cross_entropy_rows, keys, label_smoothing, chunk_size, rows, both_directions=True)
    return _chunked_loss(image_features, text_features, logit_scale, None, settings)


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
    settings = _Settings(_sigmoid_rows, keys, label_smoothing, chunk_size, rows, both_directions=False)
    return _chunked_loss(image_features, text_features, logit_scale, logit_bias, settings)


class _Settings:
    """What a loss is, beside its tensors with a gradient."""

    def __init__(
        self,
        row_loss: RowLoss,
        keys: tuple[Tensor, ...],
        label_smoothing: float,
        chunk_size: int,
        anchors: tuple[int, int],
        *,
        both_directions: bool,
    ) -> None:
        self.row_loss, self.keys, self.label_smoothing = row_loss, keys, label_smoothing
        self.both_directions = both_directions
        start, stop = anchors
        self.chunks = [(at, min(at + chunk_size, stop)) for at in range(start, stop, chunk_size)]


def _positive_keys(positives: Positives, image_key: Tensor | None, text_key: Tensor | None) -> tuple[Tensor, ...]:
    if positives == "own":
        return ()
    if image_key is None or text_key is None:
        raise ValueError("positives='shared' needs image_key and text_key")
    return image_key, text_key


def _positive_pairs(keys: tuple[Tensor, ...], start: int, stop: int, total: int, device: torch.device) -> Tensor:
    """(stop - start, total) mask of the pairs that belong together; the same in both directions."""
    columns = torch.arange(total, device=device)
    mask = columns[start:stop, None] == columns
    for key in keys:
        mask |= key[start:stop, None] == key
    return mask


def _cross_entropy_rows(logits: Tensor, positive: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over rows of the cross-entropy against uniform targets, and its gradient for the logits: softmax - target."""
    target = positive.to(logits.dtype)
    target *= (1 - label_smoothing) / target.sum(1, keepdim=True)
    target += label_smoothing / logits.shape[1]
    log_total = logits.logsumexp(1, keepdim=True)
    loss = log_total.sum() - (target * logits).sum()
    return loss, (logits - log_total).exp_().sub_(target)


def _sigmoid_rows(logits: Tensor, positive: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over pairs of softplus(logit) - target x logit, and its gradient for the logits: sigmoid - target."""
    target = positive.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    loss = torch.nn.functional.softplus(logits).sum() - (target * logits).sum()
    return loss, logits.sigmoid().sub_(target)


def _chunked_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None, settings: _Settings
) -> Tensor:
    if image_features.shape != text_features.shape:
        raise ValueError(f"features differ in shape: {tuple(image_features.shape)}, {tuple(text_features.shape)}")
    # bf16 products lose what tells a positive from a near negative, so autocast ends here.
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
        tensors = [tensor.to(dtype) for tensor in (image_features, text_features, logit_scale, bias)]
        loss: Tensor = _ChunkedLoss.apply(*tensors, settings)
    return loss


class _ChunkedLoss(torch.autograd.Function):
    """The loss and, worked out in the same pass, its gradients for the features, logit_scale and logit_bias."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, settings: _Settings) -> Tensor:
        total = len(image)
        directions = [(0, 1), (1, 0)] if settings.both_directions else [(0, 1)]
        weight = 1 / (total * len(directions))
        features = (image, text)
        gradients = (torch.zeros_like(image), torch.zeros_like(text))
        loss, scale_grad, bias_grad = image.new_zeros(3).unbind()
        for start, stop in settings.chunks:
            positive = _positive_pairs(settings.keys, start, stop, total, image.device)
            for anchor, other in directions:
                cosine = features[anchor][start:stop] @ features[other].T
                chunk_loss, grad = settings.row_loss(cosine * scale + bias, positive, settings.label_smoothing)
                loss += chunk_loss * weight
                grad *= weight
                scale_grad += (grad * cosine).sum()
                bias_grad += grad.sum()
                grad *= scale
                gradients[anchor][start:stop] += grad @ features[other]
                gradients[other].addmm_(grad.T, features[anchor][start:stop])
        ctx.save_for_backward(*gradients, scale_grad.reshape(scale.shape), bias_grad.reshape(bias.shape))
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None
