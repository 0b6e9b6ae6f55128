"""InfoNCE on CUDA: Triton kernels that take logits, softmax and its gradient in one, around products on tensor cores.

A first kernel finds what every row sums up to, in either direction; it holds no logits at all. A second one works the
logits of some rows out again and writes their gradient, which two products turn into the features' own. On one rank that
makes 5 products of the size of the similarity matrix where the chunks of `both_ways.py` take up to 4, but on tensor cores:
each as three products in TF32 that come to the accuracy of fp32.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEWEST_ROWS = 16_384
"""Chunks work no logit out twice up to half of that."""
CAPABILITIES = ((8, 0), (9, 0))
"""Of CUDA devices that by their data sheets multiply in TF32 at seven times the rate of fp32 and more: A100, H100, H200.
Where the rates are the same, as on an RTX 4090, three products in place of one don't pay."""
BLOCK_ROWS, BLOCK_COLUMNS = 4096, 8192
"""Of the logits whose gradient is held at once, in two parts: 256 MiB. Both products with it have as many rows as one side
of the block, which must give each of a GPU's multiprocessors a tile to work on."""
PROGRAMS_PER_PROCESSOR = 2
"""Programs of the first kernel for each of the device's multiprocessors, at least, so that all have work to the end."""
TILE = {"tile_rows": 128, "tile_columns": 128, "depth": 32}
# Both kernels work out the same logits, and where a row's positive is all of its softmax, their difference must be 0. Fused
# with the subtraction that comes after it in one kernel and not in the other, the scale's multiplication would be rounded
# in one of them alone.
LAUNCH = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}

Keys = tuple[Tensor, Tensor] | None
"""What tells equal images and equal texts, (B,) int64 each; None where a row has itself alone as a positive."""


@dataclass(frozen=True, slots=True)
class _Targets:
    """What the softmax of a row is to be: `share` of it, (B,), at each positive, and `even` at any place."""

    keys: Keys
    share: Tensor
    even: float


def obstacle(device: torch.device, num_rows: int) -> str | None:
    """Why InfoNCE of so many rows on this device is not for the kernels, in words; None where it is."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "the fused kernel needs CUDA"
    if num_rows < FEWEST_ROWS:
        return f"the fused kernel is for global batches of {FEWEST_ROWS:,} and more"
    if torch.cuda.get_device_capability(device) not in CAPABILITIES:
        return f"the fused kernel is for A100, H100 and H200, and this is {torch.cuda.get_device_name(device)}"
    if find_spec("triton") is None:
        return "the fused kernel needs triton, which is not installed (pip install triton)"
    return None


class FusedInfoNCE(torch.autograd.Function):
    """Share of the rows `anchors` in the mean over the 2B rows of both directions; 0-d.

    Applied to image, text (B, D) and scale (1,) or 0-d, all in fp32. The gradients are worked out beside the loss.
    """

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, keys: Keys, smoothing: float, anchors: tuple[int, int]
    ) -> Tensor:
        total, mine = len(image), slice(*anchors)
        keys = keys and (keys[0].contiguous(), keys[1].contiguous())
        parts = _in_tf32(image), _in_tf32(text)
        sides = ((image, text), parts), ((text, image), parts[::-1])
        losses, log_totals, share = [], image.new_empty(2, total), image.new_empty(total)
        for direction, ((one, other), split) in enumerate(sides):
            top, exps, positive, count = _row_sums(split, scale, keys, anchors)
            wanted = positive / count
            if smoothing:
                wanted = (1 - smoothing) * wanted + smoothing * scale * (one[mine] @ other.mean(0))
            # Row by row: the difference of two sums over all rows would lose what a small loss consists of.
            losses.append((top - wanted) + exps.log())
            log_totals[direction, mine] = top + exps.log()
            # Whether two rows belong together is the same seen from both, so either direction finds this.
            share[mine] = (1 - smoothing) / count

        gradients = torch.zeros_like(image), torch.zeros_like(text)
        targets = _Targets(keys, share, smoothing / total)
        if anchors == (0, total):
            _add_gradients(gradients, parts, scale, (log_totals[0], log_totals[1]), targets, anchors)
        else:
            _add_gradients(gradients, parts, scale, (log_totals[0], None), targets, anchors)
            _add_gradients(gradients[::-1], parts[::-1], scale, (log_totals[1], None), targets, anchors)
        weight = 1 / (2 * total)
        scale_grad = torch.linalg.vecdot(image, gradients[0]).sum() * weight
        features_grad = (gradient.mul_(scale * weight) for gradient in gradients)
        ctx.save_for_backward(*features_grad, scale_grad.reshape(scale.shape))
        return torch.stack(losses).sum() * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None, None, None


def _in_tf32(values: Tensor) -> Tensor:
    """(2, *shape): the nearest numbers that TF32 has, with 10 bits behind the point, and what they leave of fp32."""
    coarse = ((values.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return torch.stack([coarse, values - coarse])


def _row_sums(split: tuple[Tensor, Tensor], scale: Tensor, keys: Keys, rows: tuple[int, int]) -> tuple[Tensor, ...]:
    """Largest logit, sum of the exponentials beneath it, sum of the positives' logits, and their number; (rows,) each."""
    from accel_train.losses import kernels  # with triton, which only torch's CUDA builds bring

    (one, other), (start, stop) = split, rows
    _, total, width = one.shape
    num_tiles = _pieces(stop - start, TILE["tile_rows"])
    run = _columns_of_a_program(total, num_tiles, one.device)
    sums = one.new_empty(_pieces(total, run), 4, stop - start)
    with torch.cuda.device_of(one):
        kernels.row_sums[num_tiles, len(sums)](
            *one, *other, scale, *(keys or (scale, scale)), sums,
            start, stop, total, width, run,
            shared=keys is not None, **TILE, **LAUNCH,
        )  # fmt: skip
    tops = sums[:, 0]
    top = tops.amax(0)
    return top, (sums[:, 1] * (tops - top).exp()).sum(0), sums[:, 2].sum(0), sums[:, 3].sum(0)


def _add_gradients(
    gradients: tuple[Tensor, Tensor],
    split: tuple[Tensor, Tensor],
    scale: Tensor,
    log_totals: tuple[Tensor, Tensor | None],
    targets: _Targets,
    rows: tuple[int, int],
) -> None:
    """Adds the gradients of the rows' summed losses, and those of all columns where log_totals has them, unscaled.

    Two gradients, split features and log_totals: of what the rows are of, and of what the columns are of.
    """
    from accel_train.losses import kernels

    (one, other), (row_total, column_total) = split, log_totals
    _, total, width = one.shape
    room = one.new_empty(2 * min(BLOCK_ROWS, rows[1] - rows[0]) * min(BLOCK_COLUMNS, total))
    starts = itertools.product(range(*rows, BLOCK_ROWS), range(0, total, BLOCK_COLUMNS))
    for start, left in starts:
        stop, right = min(start + BLOCK_ROWS, rows[1]), min(left + BLOCK_COLUMNS, total)
        height, breadth = stop - start, right - left
        found = room[: 2 * height * breadth].view(2, height, breadth)
        grid = _pieces(height, TILE["tile_rows"]), _pieces(breadth, TILE["tile_columns"])
        with torch.cuda.device_of(one):
            kernels.logit_gradients[grid](
                *one, *other, scale, *(targets.keys or (scale, scale)),
                row_total, row_total if column_total is None else column_total, targets.share, targets.even, *found,
                start, stop, left, right, width,
                both=column_total is not None, shared=targets.keys is not None, **TILE, **LAUNCH,
            )  # fmt: skip
        _add_product(gradients[0][start:stop], found, other[:, left:right])
        _add_product(gradients[1][left:right], found.mT, one[:, start:stop])


def _add_product(into: Tensor, one: Tensor, other: Tensor) -> None:
    """Adds one @ other, both split by `_in_tf32`, the smallest terms first."""
    with _tf32():
        into.addmm_(one[1], other[0]).addmm_(one[0], other[1]).addmm_(one[0], other[0])


@contextmanager
def _tf32() -> Iterator[None]:
    """Lets products of fp32 tensors run in TF32, which is exact on what `_in_tf32` has split."""
    # allow_tf32, the older name, can't be read where someone has set this one.
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _pieces(length: int, piece: int) -> int:
    return -(-length // piece)


def _columns_of_a_program(num_columns: int, num_tiles: int, device: torch.device) -> int:
    """How far one program goes, in whole tiles, so that enough of them are under way."""
    on_cuda = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
    splits = _pieces(PROGRAMS_PER_PROCESSOR * processors, max(1, num_tiles))
    return _pieces(_pieces(num_columns, splits), TILE["tile_columns"]) * TILE["tile_columns"]
