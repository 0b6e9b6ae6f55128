"""Position embeddings of an image grid, brought to another grid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POSITION_EMBEDDINGS = ("vision_model.embeddings.position_embedding.weight", "vision_model.pool.position_embedding")
"""Their names in our models."""


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """(n, D) to (count, D): bicubic between the corners of the grid, as the original Chinese-CLIP does it.

    A row before the grid, the class token's, stays as it is. n and `count` are a square number, or one more.
    """
    extra = len(positions) - math.isqrt(len(positions)) ** 2
    old, new = math.isqrt(len(positions)), math.isqrt(count)
    if extra not in (0, 1) or count != new**2 + extra:
        raise ValueError(f"{len(positions)} positions can't become {count}: they are not both square grids.")
    grid = positions[extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=True)
    grid = grid.permute(0, 2, 3, 1).reshape(new * new, -1).to(positions.dtype)
    return torch.cat([positions[:extra], grid])


def fit_positions(weights: dict[str, Tensor], model: nn.Module, source: str) -> tuple[str, ...]:
    """Resizes the position embeddings among `weights` to the model's, in place; a line for the user if it does.

    Embeddings that are no square grid are left alone.
    """
    own = model.state_dict()
    for name in POSITION_EMBEDDINGS:
        if name not in weights or name not in own or len(weights[name]) == len(own[name]):
            continue
        before, after = math.isqrt(len(weights[name])), math.isqrt(len(own[name]))
        try:
            weights[name] = resize_positions(weights[name], len(own[name]))
        except ValueError:
            continue  # the shapes differ, which is an error that names them wherever weights are loaded
        return (
            f"position embeddings of {source} were resized from {before} x {before} to {after} x {after} patches "
            "(bicubic, corners aligned)",
        )
    return ()
