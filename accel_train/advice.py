"""Advice: what a person who has run many of these would say, each with its reason and what to do. Nothing here stops a run.

Every rule is a pure function from figures to a sentence, or None. docs/advice.md lists them with where their figures come
from; `advice: off` silences them all.
"""

from collections.abc import Sequence
from itertools import pairwise

from accel_train.config.load import leaves
from accel_train.config.schema import OptimizerSection, RunConfig
from accel_train.config.scorer import ScorerConfig
from accel_train.optim.param_groups import GroupPlan

RATES = {"head": (1e-3, 5e-3), "part": (3e-5, 1e-4), "whole": (1e-5, 3e-5)}
"""Learning rates of AdamW for pretrained towers: where only heads train, where some layers are frozen, where none is."""
TOLERANCE = 10.0
"""Tasks other than the scorer, which the rates come from, are told only when they are so many times off."""
DEEP_TOWER = 12
"""Layers from which on a tower is of the size that the rates are meant for."""
RESIDUAL_SCALES = ((500, 0.1, 0.1), (3_000, 0.2, 0.2), (10_000, 0.3, 0.3), (float("inf"), 0.4, 0.5))
"""Below so many samples: lowest and highest residual scale."""
SCALE_TOLERANCE = 0.05
LAYER_DECAY = (0.8, 0.95)
LOWEST_USEFUL_RATE = 0.01
LARGE_GRADIENT = 100.0
RISING_EVALUATIONS = 3


def before_training(config: RunConfig, optimizer: OptimizerSection, plan: GroupPlan, num_samples: int) -> list[str]:
    """All that can be said from the configuration and the groups of one phase, `optimizer` being that phase's."""
    if config.advice == "off":
        return []
    found: list[str | None] = []
    if optimizer.name in ("adamw", "adam") and starts_from_weights(config):
        tolerance = 1.0 if isinstance(config, ScorerConfig) else TOLERANCE
        for tower, kind in judged_towers(plan).items():
            lr = max(group.lr for group in plan.groups if group.tower == tower)
            found.append(rate_does_not_fit_freezing(tower, kind, lr, tolerance))
    for section in optimizer.towers:
        rates = [group.lr for group in plan.groups if group.tower == section.name]
        if section.layer_decay < 1 and rates:
            found.append(unusual_layer_decay(section.name, section.layer_decay))
            found.append(ladder_too_steep(section.name, min(rates) / max(rates)))
    if isinstance(config, ScorerConfig) and config.model.residual is not None:
        for key, scale in config.model.residual.model_dump().items():
            found.append(residual_scale_does_not_fit(key, scale, num_samples))
    return [line for line in found if line is not None]


def starts_from_weights(config: RunConfig) -> bool:
    """Whether anything pretrained is trained on: from random weights, other learning rates are right."""
    named = leaves(config.model_dump(include={"model"}))
    return config.initialize_from is not None or any(
        path.endswith("pretrained") and value is not None for path, value in named.items()
    )


def judged_towers(plan: GroupPlan) -> dict[str, str]:
    """The towers whose rate can be judged, each with its key in RATES.

    A deep tower is judged by its own frozen layers. Others are heads: they are judged where no deep tower trains, every
    tower trains as a whole or not at all, and most of the model is frozen. Single numbers, such as the temperature, are
    never judged.
    """
    deep = {group.tower for group in plan.groups if group.layer + 1 >= DEEP_TOWER}
    partly = {part.tower for part in plan.frozen_parts}
    if deep:
        return {tower: "part" if tower in partly else "whole" for tower in sorted(deep)}
    sizes: dict[str, int] = {}
    for group in plan.groups:
        sizes[group.tower] = sizes.get(group.tower, 0) + group.num_parameters
    num_frozen = sum(part.num_parameters for part in plan.frozen_parts)
    if num_frozen <= sum(sizes.values()) or partly & sizes.keys():
        return {}
    return {tower: "head" for tower, size in sizes.items() if size > 10}


def rate_does_not_fit_freezing(tower: str, kind: str, lr: float, tolerance: float = 1.0) -> str | None:
    """`kind` is a key of RATES; a rate may be `tolerance` times outside its range."""
    low, high = RATES[kind]
    # A rate at the very end of the range may have lost a digit in a product.
    if low / tolerance * (1 - 1e-9) <= lr <= high * tolerance * (1 + 1e-9):
        return None
    why = {
        "head": "with everything else frozen, heads start from nothing and bear",
        "part": "with its lower layers frozen, the rest of a pretrained tower bears",
        "whole": "with no layer frozen, a pretrained tower bears",
    }[kind]
    harm = "learns next to nothing" if lr < low else "forgets what it was pretrained on, or diverges"
    far = "" if tolerance == 1 else f", and this is more than {tolerance:g} times off"
    fix = "Raise it" if lr < low else "Lower it" if kind == "head" else "Lower it, or freeze more (train_last)"
    return (
        f"optimizer.towers.{tower}.lr comes to {lr:g}; {why} {low:g} to {high:g}{far}. At this rate it {harm}. {fix}."
    )


def residual_scale_does_not_fit(key: str, scale: float, num_samples: int) -> str | None:
    """`key` is a key of model.residual."""
    low, high = next((low, high) for below, low, high in RESIDUAL_SCALES if num_samples < below)
    if low - SCALE_TOLERANCE - 1e-9 <= scale <= high + SCALE_TOLERANCE + 1e-9:
        return None
    harm = "so large a correction learns the noise of few ratings" if scale > high else "more can be learnt than that"
    usual = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"model.residual.{key} is {scale:g} for {num_samples:,} samples: {harm}. Use {usual}, or measure both."


def unusual_layer_decay(tower: str, layer_decay: float) -> str | None:
    low, high = LAYER_DECAY
    if low <= layer_decay <= high:
        return None
    harm = "barely differs from one rate for all" if layer_decay > high else "leaves low layers next to no rate"
    return (
        f"optimizer.towers.{tower}.layer_decay is {layer_decay:g}; {low} to {high} is what works for most towers: this "
        f"{harm}. Use a value in that range{', or 1.0' if layer_decay > high else ', or freeze low layers with train_last'}."
    )


def ladder_too_steep(tower: str, ratio: float) -> str | None:
    """`ratio` is the rate of the lowest trained layer over that of the top layer."""
    if ratio >= LOWEST_USEFUL_RATE:
        return None
    return (
        f"Tower {tower}: its lowest trained layer learns at {ratio:.2g} of the rate of its top layer, next to "
        "nothing. Freeze the low layers with train_last, or raise layer_decay: the two belong together."
    )


def large_gradient(norm: float, max_grad_norm: float | None) -> str | None:
    """`norm` is over all groups, before clipping."""
    if norm <= LARGE_GRADIENT:
        return None
    said = f"the gradient norm is {norm:.3g}, and a healthy one is 0.1 to 10"
    if max_grad_norm is None:
        return f"{said}. Clip it: optimizer.max_grad_norm, 1.0 for example; lower the learning rate if it stays so."
    return (
        f"{said}. It is clipped to {max_grad_norm:g}, so every step has the same size whatever the loss says. Lower the "
        "learning rate or lengthen the warmup if it stays so."
    )


def overfitting(history: Sequence[Sequence[float]]) -> str | None:
    """`history` holds (training loss, validation loss) at the evaluations so far, oldest first."""
    last = history[-RISING_EVALUATIONS - 1 :]
    if len(last) <= RISING_EVALUATIONS:
        return None
    rises = all(before[1] < after[1] for before, after in pairwise(last))
    if not rises or last[-1][0] >= last[0][0]:
        return None
    (train_before, valid_before), (train_now, valid_now) = last[0], last[-1]
    return (
        f"the validation loss has risen for {RISING_EVALUATIONS} evaluations, from {valid_before:.4g} to {valid_now:.4g}, "
        f"while the training loss fell from {train_before:.4g} to {train_now:.4g}: the model learns its samples by heart. "
        "Stop early (evaluation.early_stopping), freeze more layers, or raise weight_decay, dropout or augmentation."
    )


def below_start(name: str, score: float, first: float) -> str | None:
    """`first` is the score before the first step."""
    if score >= first:
        return None
    return (
        f"{name} is {score:.4f}, below the {first:.4f} before the first step: training harms what was there. Lower the "
        "learning rate, warm up longer, or freeze more layers."
    )
