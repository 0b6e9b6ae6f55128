"""Floating-point operations of single torch operations, where torch's own counter leaves them out or counts them wrongly."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Size
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(query: Size, key: Size, value: Size, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Size, query: Size, key: Size, value: Size, *rest: Any, **options: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def _convolution_backward(
    grad: Size,
    images: Size,
    kernel: Size,
    bias: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
    **options: Any,
) -> int:
    """Each gradient, of the images and of the kernel, takes what the forward pass takes."""
    forward = 2 * math.prod(images if transposed else grad) * math.prod(kernel[1:])
    return forward * sum(output_mask[:2])


OWN_FORMULAS: dict[Any, Callable[..., int]] = {
    # The CPU's attention kernel; torch knows those of CUDA.
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    # torch 2.13 counts the kernel's gradient as if every group held all channels.
    aten.convolution_backward: _convolution_backward,
}
"""By operation, from the shapes of its arguments: the `custom_mapping` of torch's FlopCounterMode."""
