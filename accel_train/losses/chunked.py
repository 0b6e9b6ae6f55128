"""Losses over the similarities of images with texts, by chunks of rows.

The similarity matrix never exists in one piece: each chunk of rows gives its share of the loss and of the gradient
in closed form, and is dropped. The gradient is kept in the size of the features and scaled in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RowLoss = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""Logits (rows, columns), which it may overwrite, and their targets to the loss summed over the rows and its gradient for
the logits."""
Targets = Callable[[int, int, int], tuple[Tensor, ...]]
"""Targets of rows start to stop: direction 0 for images against texts, 1 for texts against images."""
CHUNK_SIZE = 256
"""Rows whose logits are held at once: as many as keep the products at full speed."""


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A mean over rows: of the images, or with `both_directions` over those of images and texts."""

    row_loss: RowLoss
    targets: Targets
    both_directions: bool
    num_rows: int
    """Of the whole batch, over which the mean is taken."""


def chunked_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    loss: PairLoss,
    anchors: tuple[int, int],
    chunk_size: int,
) -> Tensor:
    """Share of the rows `anchors` (start, stop) in the loss of the logits scale x cosine + bias, 0-d.

    image_features, text_features: (B, D), or without `both_directions` (N, D) and (M, D). logit_scale, logit_bias: (1,) or
    0-d. In fp32 (fp64 for fp64).
    """
    bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
    start, stop = anchors
    chunks = [slice(at, min(at + chunk_size, stop)) for at in range(start, stop, chunk_size)]
    return in_full_precision(_ChunkedLoss, [image_features, text_features, logit_scale, bias], loss, chunks)


def in_full_precision(function: type[torch.autograd.Function], tensors: list[Tensor], *rest: Any) -> Tensor:
    """Applies a loss to image features, text features and further tensors in fp32, or fp64 for fp64.

    bf16 products lose what tells a positive from a near negative, so autocast ends here.
    """
    image = tensors[0]
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        found: Tensor = function.apply(*(tensor.to(dtype) for tensor in tensors), *rest)
    return found


def check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    """Raises ValueError where not each row of one has its row of the other."""
    if image_features.shape != text_features.shape:
        raise ValueError(f"features differ in shape: {tuple(image_features.shape)}, {tuple(text_features.shape)}")


class _ChunkedLoss(torch.autograd.Function):
    """The loss and, worked out in the same pass, its gradients for the features, logit_scale and logit_bias."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, loss: PairLoss, chunks: list[slice]
    ) -> Tensor:
        directions = [(0, 1), (1, 0)] if loss.both_directions else [(0, 1)]
        weight = 1 / (loss.num_rows * len(directions))
        features = (image, text)
        gradients = (torch.zeros_like(image), torch.zeros_like(text))
        total, scale_grad, bias_grad = image.new_zeros(3).unbind()
        room = image.new_empty(max((chunk.stop - chunk.start for chunk in chunks), default=0), len(text))
        for chunk in chunks:
            for anchor, other in directions:
                rows = features[anchor][chunk]
                logits = torch.mm(rows * scale, features[other].T, out=room[: len(rows)]).add_(bias)
                chunk_loss, grad = loss.row_loss(logits, loss.targets(chunk.start, chunk.stop, anchor))
                total += chunk_loss
                bias_grad += grad.sum()
                for_rows = grad @ features[other]
                scale_grad += torch.linalg.vecdot(rows, for_rows).sum()
                gradients[anchor][chunk] += for_rows * scale
                gradients[other].addmm_(grad.T, rows * scale)
        found = [*gradients, scale_grad.reshape(scale.shape), bias_grad.reshape(bias.shape)]
        ctx.save_for_backward(*(gradient.mul_(weight) for gradient in found))
        return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None, None
