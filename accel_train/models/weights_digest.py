"""A digest of a module's weights, to tell whether something was computed by the same ones."""

import hashlib

import torch
from torch import nn


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 over all weights and buffers with their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
