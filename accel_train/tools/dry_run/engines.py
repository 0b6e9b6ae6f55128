"""Which holdings belong to which engine."""

from torch import nn

from accel_train.config.schema import OptimizerSection
from accel_train.optim.param_groups import GroupPlan
from accel_train.tools.dry_run.counting import Counting
from accel_train.tools.dry_run.fully_sharded import FullySharded
from accel_train.tools.dry_run.spread import OneCopy, Spread, ZeroOneOrTwo, ZeroTwo
from accel_train.tools.dry_run.zero_three import ZeroThree

SPREADS: dict[str, type[Spread]] = {
    "ddp": OneCopy,
    "zero1": ZeroOneOrTwo,
    "zero2": ZeroTwo,
    "zero3": ZeroThree,
    "fsdp2": FullySharded,
}


def make_spread(
    model: nn.Module,
    plan: GroupPlan,
    section: OptimizerSection,
    counted: Counting,
    engine: str,
    world_size: int,
    offload: bool,
) -> Spread:
    return SPREADS[engine](model, plan, section, counted, world_size, offload)
