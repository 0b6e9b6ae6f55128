"""A rank whose connection to another one broke says so, instead of showing where in a library it noticed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from accel_train.engine.engine import Engine
from accel_train.errors import CheckFailed


@contextmanager
def lost_ranks(engine: Engine) -> Iterator[None]:
    """Raises CheckFailed for the errors by which gloo, NCCL and the store tell that another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        if not tells_of_a_lost_rank(error):
            raise
        raise CheckFailed(
            f"rank {engine.rank} lost its connection to another rank at {engine.whereabouts}: that rank has ended, or its "
            "host can't be reached. Its own output says why, if it ended by itself. Checkpoints are as they were: the same "
            f"command goes on from the last one. ({str(error).strip().splitlines()[0]})",
            code="AT601",
        ) from error


def tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """gloo's errors are plain RuntimeErrors that begin with the place in its sources."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
