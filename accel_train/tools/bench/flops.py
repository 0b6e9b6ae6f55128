"""Floating point operations of a model, and the most that a device can do in a second."""

import re
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from accel_train.tasks.task import Batch, Task
from accel_train.tools.operation_flops import OWN_FORMULAS

FEWEST_PRODUCTS = 3
ROWS = 8
"""Rows that are counted; operations grow with their number."""
# Dense TFLOP/s by the vendor's data sheets, without sparsity: 16 bits on tensor cores, and plain float32 (torch leaves TF32
# off for matrix products unless told otherwise). "H100" alone is the one of SXM boards, so its other forms come before it.
PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250, 75),
    "GH200": (989, 67),
    "H200": (989, 67),
    "H100 NVL": (835, 60),
    "H100 PCIe": (756, 51),
    "H100": (989, 67),
    "H800": (989, 67),
    "H20": (148, 44),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A30": (165, 10.3),
    "A40": (149.7, 37.4),
    "A10G": (70, 35.2),
    "A10": (125, 31.2),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
}


@dataclass(frozen=True, slots=True)
class Peak:
    """FLOP/s of one device, or of the threads of one rank on a CPU."""

    flops_per_second: float
    source: str


def model_flops_per_row(task: Task, model: nn.Module, batch: Batch) -> float:
    """Operations of one row's forward and backward pass through the plain model: matrix products and attention.

    Recomputation and second passes are not counted: they are a way to compute, not the work that was asked for. Nor is the
    loss, which is small beside the towers. Parts that don't train have no backward pass.
    """
    rows = {name: column[:ROWS] for name, column in batch.items()}
    with FlopCounterMode(display=False, custom_mapping=OWN_FORMULAS) as counter:
        outputs = model(task.add_to_batch(rows))
        torch.stack([value.float().sum() for value in outputs.values() if value.requires_grad]).sum().backward()
    model.zero_grad()
    return float(counter.get_total_flops()) / len(rows["sample_id"])


def device_peak(device: torch.device, precision: str) -> Peak:
    """From the table of known GPUs, or, for others and for CPUs, the best of some large matrix products, measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (half, single) in PEAKS.items():
            if re.search(rf"\b{known}\b", name):
                teraflops = single if precision == "fp32" else half
                return Peak(teraflops * 1e12, f"{name}, {teraflops:g} TFLOP/s in {precision} by its data sheet")
    return Peak(measured_peak(device, precision), f"the fastest matrix product measured here in {precision}")


def measured_peak(device: torch.device, precision: str, *, seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products: the best of as many as fit into the time."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end, taken = float("inf"), time.perf_counter() + seconds, 0
    left @ right
    while taken < FEWEST_PRODUCTS or time.perf_counter() < end:
        taken += 1
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
