"""Measures how fast this host multiplies, moves memory and talks between ranks. Takes well under a minute."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from accel_train.engine.engine import Engine
from accel_train.tools.calibration.record import Curve, Rates, seconds_at
from accel_train.tools.dry_run.counting import Counting

LONGEST_CALL = 0.1
"""Seconds: a curve ends with the first size at which one operation takes longer."""
TIME_FOR_A_SIZE = 0.05
ROUNDS = 5
"""The best of so many counts: what else runs on the machine only ever adds."""
MATRIX_SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
IMAGE_SIDES = (8, 16, 32, 64, 128, 256)
TOKENS = (16, 32, 64, 128, 256, 512, 1024)
NUMBERS = tuple(4**power for power in range(4, 15))
COLLECTIVE_BYTES = tuple(4**power for power in range(5, 14))
HEADS, HEAD_WIDTH, SEQUENCES, WIDTH = 8, 64, 8, 256

Operation = Callable[[], object]
Make = Callable[[int, torch.device, torch.dtype], tuple[float, Operation]]
"""An operation of a given side, and its size as `Work` counts it."""


def measure_rates(device: torch.device) -> Rates:
    """On one rank, or on all of them together as they will compute."""
    curves: dict[str, Curve] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for kind, (make, sizes) in BY_DTYPE.items():
            curves[f"{kind}/{name}"] = _curve(make, sizes, device, dtype)
    curves["plain"] = _curve(_plain, NUMBERS, device, torch.float32)
    curves["dear"] = _curve(_dear, NUMBERS, device, torch.float32)
    return _as_in_a_step(Rates(curves, _seconds_per_operation(device, curves)), device)


def measure_collectives(engine: Engine) -> dict[str, Curve]:
    """Between the ranks of this launch, as they run in a step; every rank calls it and gets the slowest rank's figures."""
    found: dict[str, Curve] = {"all_reduce": [], "all_gather": []}
    for size in COLLECTIVE_BYTES:
        whole = torch.ones(size // 4, device=engine.device)
        own = torch.ones(max(1, size // 4 // engine.world_size), device=engine.device)
        parts = [torch.empty_like(own) for _ in range(engine.world_size)]
        operations: dict[str, Operation] = {
            "all_reduce": partial(dist.all_reduce, whole, op=dist.ReduceOp.MAX),  # a sum would grow without end
            "all_gather": partial(dist.all_gather, parts, own),
        }
        for kind, operation in operations.items():
            seconds = _agreed_time(operation, engine)
            found[kind].append((float(size), seconds))
        if max(curve[-1][1] for curve in found.values()) > LONGEST_CALL:
            break
    curves = {kind: _rising(curve) for kind, curve in found.items()}
    factor = _collectives_in_a_step(engine, curves["all_reduce"])
    return _longer(curves, factor)


def _as_in_a_step(rates: Rates, device: torch.device) -> Rates:
    """All times longer by what a pass of an encoder takes over the sum of its operations, each measured alone.

    Alone an operation finds its operands in the caches and its memory at hand.
    """
    encoder, values = _encoder(device)
    counted = Counting()
    with counted:
        _pass(encoder, values)
    alone = sum(number * rates.seconds_of(work) for work, number in counted.work.items())
    factor = max(1.0, _time(partial(_pass, encoder, values), device) / alone)
    return Rates(_longer(rates.curves, factor), rates.seconds_per_operation * factor)


def _longer(curves: dict[str, Curve], factor: float) -> dict[str, Curve]:
    return {kind: [(size, seconds * factor) for size, seconds in curve] for kind, curve in curves.items()}


def _collectives_in_a_step(engine: Engine, all_reduce: Curve) -> float:
    """What DistributedDataParallel adds to a pass of an encoder, over one reduction of all its gradients by itself.

    Gradients are copied into buckets and out again, and ranks are not quite together.
    """
    encoder, values = _encoder(engine.device)
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    alone = _agreed_time(partial(_pass, encoder, values), engine)
    together = _agreed_time(partial(_pass, DistributedDataParallel(encoder), values), engine)
    return max(1.0, (together - alone) / seconds_at(all_reduce, size))


def _encoder(device: torch.device) -> tuple[nn.Module, Tensor]:
    """An encoder whose operations are as large as those of small models, and a batch for it."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device).train()
    return encoder, torch.randn(16, 64, WIDTH, device=device)


def _pass(encoder: nn.Module, values: Tensor) -> None:
    encoder.zero_grad()
    encoder(values).sum().backward()


def _agreed_time(operation: Operation, engine: Engine) -> float:
    """Every rank must call as often as the others, so the counts are fixed."""
    operation()
    best = float("inf")
    for _ in range(ROUNDS):
        engine.exchange([0])
        best = min(best, _timed(operation, 3, engine.device))
    return max(row[0] for row in engine.exchange([round(best * 1e9)])) / 1e9


def _curve(make: Make, sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Curve:
    curve: Curve = []
    for side in sizes:
        size, operation = make(side, device, dtype)
        seconds = _time(operation, device)
        curve.append((size, seconds))
        if seconds > LONGEST_CALL:
            break
    return _rising(curve)


def _rising(curve: Curve) -> Curve:
    """More work never takes less time; where it was measured so, the smaller size was disturbed."""
    lowest = float("inf")
    found: Curve = []
    for size, seconds in reversed(curve):
        lowest = min(lowest, max(seconds, 1e-9))
        found.append((size, lowest))
    return found[::-1]


def _time(operation: Operation, device: torch.device) -> float:
    operation()
    once = _timed(operation, 1, device)
    count = max(1, int(TIME_FOR_A_SIZE / ROUNDS / max(once, 1e-7)))
    return min(once, *(_timed(operation, count, device) for _ in range(ROUNDS)))


def _timed(operation: Operation, count: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        operation()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matmul(side: int, device: torch.device, dtype: torch.dtype) -> tuple[float, Operation]:
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3, lambda: left @ right


def _convolution(kernel_side: int, groups: int, *, backward: bool) -> Make:
    """Of 64 channels; backward, both gradients at once."""

    def make(side: int, device: torch.device, dtype: torch.dtype) -> tuple[float, Operation]:
        images = torch.ones(8, 64, side, side, device=device, dtype=dtype)
        kernel = torch.ones(64, 64 // groups, kernel_side, kernel_side, device=device, dtype=dtype)
        forward = 2.0 * images.numel() * kernel[0].numel()
        settings: tuple[Any, ...] = ([1, 1], [kernel_side // 2] * 2, [1, 1], False, [0, 0], groups)
        if not backward:
            return forward, lambda: torch.ops.aten.convolution(images, kernel, None, *settings)
        gradients = partial(torch.ops.aten.convolution_backward, images, images, kernel, None, *settings)
        return 2 * forward, lambda: gradients([True, True, False])

    return make


def _attention(tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[float, Operation]:
    shape = (SEQUENCES, HEADS, tokens, HEAD_WIDTH)
    query, key, value = (torch.ones(shape, device=device, dtype=dtype) for _ in range(3))
    flops = 4.0 * SEQUENCES * HEADS * tokens**2 * HEAD_WIDTH
    return flops, lambda: F.scaled_dot_product_attention(query, key, value)


def _plain(numbers: int, device: torch.device, dtype: torch.dtype) -> tuple[float, Operation]:
    left, right = (torch.ones(numbers, device=device, dtype=dtype) for _ in range(2))
    return 12.0 * numbers, lambda: left + right


def _dear(numbers: int, device: torch.device, dtype: torch.dtype) -> tuple[float, Operation]:
    values = torch.linspace(-3, 3, numbers, device=device, dtype=dtype)
    return 8.0 * numbers, lambda: F.gelu(values)


def _seconds_per_operation(device: torch.device, curves: dict[str, Curve]) -> float:
    """From an encoder so small that arithmetic costs nothing: a pass forward and back over the number of its operations."""
    layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device).train()
    values = torch.ones(1, 2, 16, device=device)

    def forward_and_back() -> Tensor:
        loss: Tensor = model(values).sum()
        loss.backward()
        return loss

    counted = Counting()
    with counted:
        forward_and_back()
    num = sum(counted.work.values())
    bare = sum(count * seconds_at(curves["plain"], 1) for count in counted.work.values())
    return max(0.0, _time(forward_and_back, device) - bare) / num


BY_DTYPE: dict[str, tuple[Make, tuple[int, ...]]] = {
    "matmul": (_matmul, MATRIX_SIDES),
    "convolution": (_convolution(3, 1, backward=False), IMAGE_SIDES),
    "convolution_backward": (_convolution(3, 1, backward=True), IMAGE_SIDES),
    "depthwise": (_convolution(7, 64, backward=False), IMAGE_SIDES),
    "depthwise_backward": (_convolution(7, 64, backward=True), IMAGE_SIDES),
    "attention": (_attention, TOKENS),
}
