"""What trainers that were written for CUDA alone need on a CPU."""

from typing import Any

import torch
from torch import nn

_library = torch.library.Library("torchvision", "DEF")


def declare_operators() -> None:
    """Lets torchvision, whose transforms the peers need, be imported where its wheel's operators for CUDA can't be loaded.

    Declares those that the import asks for, without implementations. Call it before the import.
    """
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def wrap_without_devices() -> None:
    """DistributedDataParallel refuses `device_ids` for modules on a CPU: drops them."""

    class OnCpu(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module, device_ids: Any = None, **options: Any) -> None:
            super().__init__(module, **options)

    nn.parallel.DistributedDataParallel = OnCpu  # type: ignore[misc]
