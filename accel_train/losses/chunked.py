"""Losses over the similarities of all images with all texts, by chunks of rows.

The B x B similarity matrix never exists in one piece: each chunk of rows gives its share of the loss and of the gradient
in closed form, and is dropped. The gradient is kept in the size of the features and scaled in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RowLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Logits (rows, B) and their target to the loss summed over the rows and its gradient for the logits."""
Targets = Callable[[int, int], tuple[Tensor, Tensor]]
"""The targets of rows start to stop, for images against texts and for texts against images."""


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A mean over rows: of the images, or with `both_directions` over those of images and texts."""

    row_loss: RowLoss
    targets: Targets
    both_directions: bool


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

    image_features, text_features: (B, D). logit_scale, logit_bias: (1,) or 0-d. In fp32 (fp64 for fp64).
    """
    if image_features.shape != text_features.shape:
        raise ValueError(f"features differ in shape: {tuple(image_features.shape)}, {tuple(text_features.shape)}")
    # bf16 products lose what tells a positive from a near negative, so autocast ends here.
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
        tensors = [tensor.to(dtype) for tensor in (image_features, text_features, logit_scale, bias)]
        start, stop = anchors
        chunks = [(at, min(at + chunk_size, stop)) for at in range(start, stop, chunk_size)]
        found: Tensor = _ChunkedLoss.apply(*tensors, loss, chunks)
    return found


class _ChunkedLoss(torch.autograd.Function):
    """The loss and, worked out in the same pass, its gradients for the features, logit_scale and logit_bias."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        loss: PairLoss,
        chunks: list[tuple[int, int]],
    ) -> Tensor:
        directions = [(0, 1), (1, 0)] if loss.both_directions else [(0, 1)]
        weight = 1 / (len(image) * len(directions))
        features = (image, text)
        gradients = (torch.zeros_like(image), torch.zeros_like(text))
        total, scale_grad, bias_grad = image.new_zeros(3).unbind()
        for start, stop in chunks:
            targets = loss.targets(start, stop)
            for anchor, other in directions:
                cosine = features[anchor][start:stop] @ features[other].T
                chunk_loss, grad = loss.row_loss(cosine * scale + bias, targets[anchor])
                total += chunk_loss * weight
                grad *= weight
                scale_grad += (grad * cosine).sum()
                bias_grad += grad.sum()
                grad *= scale
                gradients[anchor][start:stop] += grad @ features[other]
                gradients[other].addmm_(grad.T, features[anchor][start:stop])
        ctx.save_for_backward(*gradients, scale_grad.reshape(scale.shape), bias_grad.reshape(bias.shape))
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None, None
