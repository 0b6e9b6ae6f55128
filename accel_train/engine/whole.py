"""Whole tensors out of an engine that holds pieces, for checks. Every function is called by all ranks together."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from accel_train.engine.engine import Engine


def whole_gradients(engine: Engine) -> Iterator[tuple[str, Tensor | None]]:
    """Between the last backward pass and the update: the gradient of each parameter that trains, on every rank.

    Read by the public ways of torch and DeepSpeed, not by the engine's own. None where an engine has none to show. Ranks
    that hold replicas give their own.
    """
    for name, parameter in engine.bare_model().named_parameters():
        if parameter.requires_grad:
            found = _of_deepspeed(parameter) if engine.launch.engine.startswith("zero") else parameter.grad
            yield name, None if found is None else _whole(found.detach())


def whole_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """The weights that the model computes with, as this rank sees them."""
    parameters = dict(engine.bare_model().named_parameters())
    for name, parameter in parameters.items():
        with _gathered(engine, parameter):
            yield name, _whole(parameter.detach())


def whole_state(
    engine: Engine, state_names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, str, Tensor]]:
    """What the optimizer holds: (kind, parameter, tensor) for `weight` and each kind of state, joined over the ranks.

    `shapes` are those of the whole parameters, by name and in one order on every rank. A parameter without state of a kind
    gives zeros.
    """
    pieces: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for shard in engine.shards(state_names):
        if not shard.replicated or engine.is_main:
            for kind, piece in {"weight": shard.weight, **shard.state}.items():
                pieces.setdefault((kind, shard.name), []).append((shard.offset, piece))
    for name, shape in shapes.items():
        for kind in ("weight", *state_names):
            whole = torch.zeros(torch.Size(shape).numel(), device=engine.device)
            for offset, piece in pieces.get((kind, name), []):
                whole[offset : offset + piece.numel()] = piece
            yield kind, name, engine.sum_(whole).view(shape)


def _of_deepspeed(parameter: nn.Parameter) -> Tensor | None:
    from deepspeed.utils import safe_get_full_grad

    try:
        return safe_get_full_grad(parameter)
    except ValueError:  # no backward pass was said to be the last one
        return None


def _gathered(engine: Engine, parameter: nn.Parameter) -> AbstractContextManager[Any]:
    if engine.launch.engine != "zero3":
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
