"""What a run leaves as it was."""

from itertools import accumulate

from torch import nn

from accel_train.config.schema import RunConfig, optimizer_of_phase
from accel_train.optim.param_groups import plan_groups


def never_trained(model: nn.Module, config: RunConfig) -> frozenset[str]:
    """Names of the parameters that are frozen in every phase. Raises UserError where towers and parameters don't fit."""
    optimizers = accumulate(config.phases, optimizer_of_phase, initial=config.optimizer)
    return frozenset.intersection(*(frozenset(plan_groups(model, optimizer).frozen) for optimizer in optimizers))
