"""Learning rates for another batch size than the one they were chosen at.

`linear` (Goyal et al. 2017, arXiv:1706.02677) multiplies by the ratio of the batch sizes, which suits SGD; `square_root`
(Krizhevsky 2014, arXiv:1404.5997; for Adam Malladi et al. 2022, arXiv:2205.10287) by its square root.
"""

from accel_train.config.schema import OptimizerSection


def lr_factor(optimizer: OptimizerSection, global_batch_size: int) -> float:
    """What every tower's learning rate is multiplied by; 1 without `optimizer.lr_scaling`."""
    if optimizer.lr_scaling is None:
        return 1.0
    ratio = global_batch_size / optimizer.lr_scaling.base_batch_size
    return ratio if optimizer.lr_scaling.rule == "linear" else ratio**0.5


def scaled(optimizer: OptimizerSection, global_batch_size: int) -> OptimizerSection:
    """The section with its towers' learning rates multiplied, and `lr_scaling` gone."""
    factor = lr_factor(optimizer, global_batch_size)
    towers = [tower.model_copy(update={"lr": tower.lr * factor}) for tower in optimizer.towers]
    return optimizer.model_copy(update={"towers": towers, "lr_scaling": None})


def scaling_in_words(optimizer: OptimizerSection, global_batch_size: int) -> str | None:
    """What the scaling does to this run, for the log and the plan; None without one."""
    if optimizer.lr_scaling is None:
        return None
    rule, base = optimizer.lr_scaling.rule.replace("_", " "), optimizer.lr_scaling.base_batch_size
    factor = lr_factor(optimizer, global_batch_size)
    return f"every learning rate x {factor:.4g}: {rule} from a batch of {base} to {global_batch_size}"
