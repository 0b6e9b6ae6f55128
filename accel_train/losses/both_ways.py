"""Symmetric cross-entropy over a whole batch, where the logits of each chunk of rows serve both directions.

A first pass finds what every row and every column of the logits sums up to, a second one makes the gradient. The logits of
some chunks are kept in between and the others are worked out again, so this takes 3 to 4 products of the size of the
similarity matrix: the plain form takes 3, and the chunks of one direction after the other take 6.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from accel_train.losses.positives import Positives

KEPT_ELEMENTS = 2**26
"""Logits that are kept between the passes: 256 MiB in fp32, all of them up to a batch of 8,192."""


class BothWays(torch.autograd.Function):
    """Mean over the 2B rows of the cross-entropy against uniform targets over the positives, smoothed; 0-d.

    Applied to image, text (B, D) and scale (1,) or 0-d, all of one type; the gradients are worked out beside the loss.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, positives: Positives, smoothing: float, chunk_size: int
    ) -> Tensor:
        total = len(image)
        rows = [slice(at, min(at + chunk_size, total)) for at in range(0, total, chunk_size)]
        num_kept = max(1, KEPT_ELEMENTS // (chunk_size * total))
        columns = text.T
        buffer = image.new_empty(min(chunk_size, total), total)
        sums = _Sums(image)
        kept = [_added(sums, (image[chunk] * scale) @ columns, chunk, positives, buffer) for chunk in rows[:num_kept]]
        again = image.new_empty(buffer.shape) if num_kept < len(rows) else buffer
        for chunk in rows[num_kept:]:
            _added(sums, _product(image[chunk] * scale, columns, again), chunk, positives, buffer)
        loss = sums.loss(image, text, scale, smoothing)

        scale_grad = image.new_zeros(())
        image_grad, text_grad = torch.empty_like(image), torch.zeros_like(text)
        for number, chunk in enumerate(rows):
            logits = kept[number] if number < num_kept else _product(image[chunk] * scale, columns, again)
            grad = sums.gradient(logits, chunk, positives, smoothing, buffer)
            torch.mm(grad, text, out=image_grad[chunk])
            scale_grad += torch.linalg.vecdot(image[chunk], image_grad[chunk]).sum()
            text_grad.addmm_(grad.T, image[chunk])
        weight = 1 / (2 * total)
        features_grad = image_grad.mul_(scale * weight), text_grad.mul_(scale * weight)
        ctx.save_for_backward(*features_grad, (scale_grad * weight).reshape(scale.shape))
        return loss * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None, None, None


def _product(scaled: Tensor, columns: Tensor, room: Tensor) -> Tensor:
    return torch.mm(scaled, columns, out=room[: len(scaled)])


def _added(sums: "_Sums", logits: Tensor, chunk: slice, positives: Positives, room: Tensor) -> Tensor:
    sums.add(logits, chunk, positives, room)
    return logits


class _Sums:
    """The largest logit of every row and column, the sum of the exponentials beneath it, and the positives' logits."""

    def __init__(self, like: Tensor) -> None:
        total = len(like)
        self.row_top, self.row_sum = like.new_empty(total), like.new_empty(total)
        self.column_top, self.column_sum = like.new_full((total,), -torch.inf), like.new_zeros(total)
        # Whether two rows belong together is the same seen from both, so a row has as many positives as its column.
        self.count, self.row_positive, self.column_positive = like.new_zeros(3, total).unbind()

    def add(self, logits: Tensor, chunk: slice, positives: Positives, room: Tensor) -> None:
        exps = room[: len(logits)]
        top = logits.amax(1)
        torch.sub(logits, top[:, None], out=exps).exp_()
        self.row_top[chunk], self.row_sum[chunk] = top, exps.sum(1)
        top = torch.maximum(self.column_top, logits.amax(0))
        torch.sub(logits, top, out=exps).exp_()
        self.column_sum.mul_((self.column_top - top).exp_()).add_(exps.sum(0))
        self.column_top = top
        row, column = positives.pairs(chunk.start, chunk.stop)
        wanted = logits[row, column]
        # index_add_ would sum in an order of its own on a GPU.
        self.count[chunk].index_put_((row,), torch.ones_like(wanted), accumulate=True)
        self.row_positive[chunk].index_put_((row,), wanted, accumulate=True)
        self.column_positive.index_put_((column,), wanted, accumulate=True)

    def loss(self, image: Tensor, text: Tensor, scale: Tensor, smoothing: float) -> Tensor:
        """Summed over the rows of both directions."""
        # Row by row: the difference of two sums over all rows would lose what a small loss consists of.
        sides = (
            (self.row_top, self.row_sum, self.row_positive, image, text),
            (self.column_top, self.column_sum, self.column_positive, text, image),
        )
        losses = []
        for top, total, positive, one, other in sides:
            wanted = positive / self.count
            if smoothing:
                wanted = (1 - smoothing) * wanted + smoothing * scale * (one @ other.mean(0))
            losses.append((top - wanted) + total.log())
        return torch.stack(losses).sum()

    def gradient(self, logits: Tensor, chunk: slice, positives: Positives, smoothing: float, room: Tensor) -> Tensor:
        """Softmax of the rows and of the columns, less both targets; takes the place of the logits."""
        exps = room[: len(logits)]
        torch.sub(logits, (self.row_top[chunk] + self.row_sum[chunk].log())[:, None], out=exps).exp_()
        logits.sub_(self.column_top + self.column_sum.log()).exp_().add_(exps)
        row, column = positives.pairs(chunk.start, chunk.stop)
        shares = (1 - smoothing) / self.count
        logits[row, column] -= shares[chunk][row] + shares[column]
        return logits.sub_(2 * smoothing / len(self.count)) if smoothing else logits
