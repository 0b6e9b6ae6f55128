"""Rows that go around a ring of ranks, each rank's in turn seen by all, and what every rank adds to them on the way.

A rank hands its block to the next one and takes that of the one before. This is posted before the present block is looked
at, so data travels while a rank computes. What was added to a block follows one hop behind it, and comes home after a last
hop. Sent by each rank: blocks once around and sums once around, where gathering and reducing them takes one and two.
"""

from collections.abc import Callable, Iterable

import torch.distributed as dist
from torch import Tensor

from accel_train.engine.engine import Engine

Block = dict[str, Tensor]
Visit = Callable[[int, Block], Block]
"""What a rank adds to the block of another one: from that rank's number and its block to tensors with a row for each row."""


def around_ring(engine: Engine, block: Block, counts: list[int], visit: Visit) -> Block:
    """Lets every rank visit the blocks of all, its own first, and returns what they have added to this rank's.

    Rank r holds counts[r] rows; names, types and further dimensions are the same on all ranks. Of two or more ranks.
    """
    leaving: Block = {}
    for hop in range(engine.world_size):
        owner = (engine.rank - hop) % engine.world_size
        is_last = hop == engine.world_size - 1
        coming = {} if is_last else _room(block, counts[owner - 1])
        before = _room(leaving, counts[owner])
        moves = _post(engine, [{} if is_last else block, leaving], [coming, before])
        added = visit(owner, block)
        _arrive(engine, moves)
        leaving = {name: (value + before[name] if before else value).contiguous() for name, value in added.items()}
        block = coming
    home = _room(leaving, counts[engine.rank])
    _arrive(engine, _post(engine, [leaving], [home]))
    return home


def _room(like: Block, num_rows: int) -> Block:
    return {name: value.new_empty((num_rows, *value.shape[1:])) for name, value in like.items()}


def _post(engine: Engine, leaving: Iterable[Block], coming: Iterable[Block]) -> list[dist.Work]:
    """Begins to send to the next rank and to receive from the one before, without waiting for either."""
    neighbours = (engine.rank + 1) % engine.world_size, (engine.rank - 1) % engine.world_size
    moves = [
        dist.P2POp(move, value, neighbour)
        for move, neighbour, blocks in zip((dist.isend, dist.irecv), neighbours, (leaving, coming), strict=True)
        for block in blocks
        for value in block.values()
        if value.numel()
    ]
    return dist.batch_isend_irecv(moves) if moves else []


def _arrive(engine: Engine, moves: list[dist.Work]) -> None:
    engine.whereabouts.enter("around_ring")
    for move in moves:
        move.wait()
    engine.whereabouts.leave()
