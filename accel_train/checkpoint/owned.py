"""Which part of the training state a rank writes."""

from collections.abc import Iterator

from torch import Tensor

from accel_train.checkpoint.pieces import Pieces, pieces_of
from accel_train.engine.engine import Engine
from accel_train.engine.shards import Shard


def owned_pieces(engine: Engine, state_names: tuple[str, ...]) -> Pieces:
    """What this rank's file is to hold: its shards, and rank 0's buffers."""
    buffers = persistent_buffers(engine) if engine.is_main else {}
    return pieces_of(engine.rank, owned_shards(engine, state_names), buffers)


def owned_shards(engine: Engine, state_names: tuple[str, ...]) -> Iterator[Shard]:
    """This rank's shards; where all ranks hold the same, each takes a share of about equal size."""
    load = [0] * engine.world_size
    for shard in engine.shards(state_names):
        owner = load.index(min(load)) if shard.replicated else engine.rank
        if shard.replicated:
            load[owner] += shard.weight.numel()
        if owner == engine.rank:
            yield shard


def persistent_buffers(engine: Engine) -> dict[str, Tensor]:
    """Buffers that state_dict would hold, found without touching sharded parameters."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in engine.bare_model().named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
