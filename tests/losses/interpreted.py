"""The fused kernels under Triton's interpreter, in a process of its own: it must be told before Triton is imported.

`TRITON_INTERPRET=1 python -m tests.losses.interpreted FILE` leaves loss and gradients of every case in FILE.
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.losses import fused
from accel_train.losses.chunked import in_full_precision

BLOCK = 128, 200


@dataclass(frozen=True)
class Case:
    rows: int = 150
    width: int = 96
    scale: float = 20.0
    num_keys: int | None = None
    """Different images, and different captions, of the batch; None: rows have themselves alone as positives."""
    smoothing: float = 0.0
    anchors: tuple[int, int] | None = None
    noise: float | None = None
    """How far texts lie from their images; None: they have nothing to do with them."""

    def features(self) -> list[Tensor]:
        """image_features, text_features, logit_scale, all in fp32 and asking for a gradient."""
        generator = torch.Generator().manual_seed(self.rows + self.width)
        image, text = (F.normalize(torch.randn(self.rows, self.width, generator=generator), dim=-1) for _ in range(2))
        if self.noise is not None:
            text = F.normalize(image + self.noise * text, dim=-1)
        return [tensor.requires_grad_() for tensor in (image, text, torch.tensor([self.scale]))]

    def keys(self) -> tuple[Tensor, Tensor] | None:
        if self.num_keys is None:
            return None
        generator = torch.Generator().manual_seed(self.num_keys)
        image, text = (torch.randint(self.num_keys, (self.rows,), generator=generator) for _ in range(2))
        return image, text

    @property
    def mine(self) -> tuple[int, int]:
        return self.anchors or (0, self.rows)


CASES = {
    "own": Case(),
    "one tile": Case(rows=5, width=7),
    "whole tiles": Case(rows=256, width=64),
    "many tiles": Case(rows=301, width=33, num_keys=200, smoothing=0.2),
    "512 wide": Case(rows=40, width=512, num_keys=30),
    "768 wide": Case(rows=33, width=768, smoothing=0.1),
    "scale 100": Case(scale=100.0, num_keys=120),
    "shared": Case(num_keys=100),
    "smoothed": Case(num_keys=100, smoothing=0.1),
    "one image": Case(rows=40, num_keys=1, smoothing=0.1),
    "small loss": Case(width=64, scale=14.3, noise=0.4),
    "first rank": Case(num_keys=100, smoothing=0.1, anchors=(0, 50)),
    "middle rank": Case(num_keys=100, anchors=(50, 133)),
    "last rank": Case(smoothing=0.1, anchors=(133, 150)),
    "rank of one row": Case(num_keys=100, smoothing=0.1, anchors=(149, 150)),
    "rank without rows": Case(num_keys=100, anchors=(4, 4)),
    "many tiles of a rank": Case(rows=310, width=33, num_keys=200, smoothing=0.2, anchors=(20, 290)),
}


def loss_and_gradients(case: Case) -> list[Tensor]:
    fused.BLOCK_ROWS, fused.BLOCK_COLUMNS = BLOCK
    tensors = case.features()
    loss = in_full_precision(fused.FusedInfoNCE, tensors, case.keys(), case.smoothing, case.mine)
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


if __name__ == "__main__":
    fused.PROGRAMS_PER_PROCESSOR = 4
    torch.save({name: loss_and_gradients(case) for name, case in CASES.items()}, sys.argv[1])
