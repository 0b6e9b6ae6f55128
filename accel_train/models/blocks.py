"""The repeated blocks of a model: the units of activation checkpointing, compilation and sharding."""

import functools
from typing import Any

import torch
import torch._functorch.config
from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCK_LISTS = ("layer", "layers")
"""Names that transformers gives to the lists that hold the blocks of its encoders."""


def repeated_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Transformer, ConvNeXt and ResNet blocks with their names, in the order of the model; never one inside another."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential)) and name.rpartition(".")[2] in BLOCK_LISTS
        if is_list and not any(name.startswith(f"{block}.") for block, _ in blocks):
            blocks += [(f"{name}.{position}", block) for position, block in module.named_children()]
    return blocks


def checkpoint_activations(model: nn.Module) -> None:
    """Each block stores its input alone and is computed again in the backward pass, under the same random state.

    Blocks keep their identity, so parameter names don't change.
    """
    for _, block in repeated_blocks(model):
        block.forward = functools.partial(_checkpointed, block.forward)


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


def compile_blocks(model: nn.Module) -> None:
    """torch.compile of each block: equal blocks share one compilation, and parameter names don't change.

    What one pass over memory gives again, as the outputs of normalisations and of activation functions, is not kept for the
    backward pass: a third less memory for a ViT, and so more graphs that a cached step can keep.
    """
    torch._functorch.config.ban_recompute_materialized_backward = False
    for _, block in repeated_blocks(model):
        block.compile()
