"""How far the launched step is from the plain one, in numbers, by parameter group."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.run import Run
from accel_train.tools.verify.launched import Launched, Named
from accel_train.tools.verify.plain import AS_DRAWN, PlainGradients
from accel_train.tools.verify.plain_update import PlainUpdate, scale_asked

NOISE_FLOOR = 1e-3
"""Of the largest group's gradient norm. Some gradients are zero in exact arithmetic; what is left of them is rounding, and
an error relative to that would mean nothing."""
ROUNDING = 2.0**-23
"""Of a float32 weight: an update is no more exact than the weight that it is added to."""
TEMPERATURE = "logit_scale"


@dataclass(frozen=True, slots=True)
class Closeness:
    """Of found tensors to wanted ones, all of them joined."""

    error: float
    """Norm of the difference over the norm of the wanted ones, or over the floor if that is larger."""
    cosine: float
    ratio: float
    """How long the found ones are along the wanted ones, which have length 1."""
    norm: float
    """Of the found ones."""


@dataclass(frozen=True, slots=True)
class GroupReading:
    """One parameter group of the plan, beside the engine's."""

    name: str
    tower: str
    num_parameters: int
    lr: tuple[float, float]
    """Asked, applied; so too the next ones."""
    weight_decay: tuple[float, float]
    max_grad_norm: tuple[float | None, float | None]
    gradient: Closeness
    gradient_without_temperature: Closeness | None
    """None where the group holds nothing else."""
    update: Closeness
    """Of the weights' change to the one that torch's optimizer makes from the launch's own gradient."""
    state: Closeness
    """Of the optimizer's state to that optimizer's."""
    update_to_weight: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that the verdict is found from."""

    world_size: int
    num_micro_batches: int
    groups: list[GroupReading]
    temperature: Closeness | None
    losses: tuple[float, float]
    """Found, wanted."""
    same_samples: bool
    num_samples: int
    other_start: list[str]
    """Weights that the launch started from and that are not those of the plain model."""
    num_frozen: int
    """Tensors that don't train."""
    moved: list[str]
    """Those of them that the step changed."""
    other_buffers: list[str]
    clipped_norm: float
    """Of the whole gradient that the launch reduced, after the clipping that the configuration asks for."""
    draws: bool
    """Whether the model draws random numbers that the launch must repeat."""
    remarks: list[str]


def closeness(
    found: Iterable[Tensor], wanted: Iterable[Tensor], *, floor: float = 0.0, slack: float = 0.0
) -> Closeness:
    """`slack` is taken off the norm of the difference: what rounding alone may make of it."""
    product = square = wanted_square = difference = 0.0
    for mine, theirs in zip(found, wanted, strict=True):
        a, b = mine.double().flatten(), theirs.double().flatten()
        product += float(a @ b)
        square += float(a @ a)
        wanted_square += float(b @ b)
        difference += float((a - b).square().sum())
    size = max(math.sqrt(wanted_square), floor)
    off = max(0.0, math.sqrt(difference) - slack) if math.isfinite(difference) else math.nan
    both = math.sqrt(square * wanted_square)
    return Closeness(
        error=off / size if size else (0.0 if off == 0 else math.inf),
        cosine=product / both if both else (1.0 if square == wanted_square else 0.0),
        ratio=product / wanted_square if wanted_square else (1.0 if square == 0 else math.inf),
        norm=math.sqrt(square),
    )


def compare(run: Run, launched: Launched, plain: PlainGradients, update: PlainUpdate) -> Reading:
    """All readings of one step, on rank 0."""
    found = {name: launched.gradients.get(name, torch.zeros_like(wanted)) for name, wanted in plain.gradients.items()}
    norms = [_norm(plain.gradients[name] for name in group.param_names) for group in run.plan.groups]
    floor = NOISE_FLOOR * max(norms)
    temperatures = [name for name in plain.gradients if name.rpartition(".")[2] == TEMPERATURE]
    scale = scale_asked(run, launched.step)

    def of_gradients(names: Iterable[str]) -> Closeness | None:
        wanted = {name: plain.gradients[name] for name in names}
        return closeness([found[name] for name in wanted], wanted.values(), floor=floor) if wanted else None

    groups = []
    for planned, applied in zip(run.plan.groups, launched.groups, strict=True):
        names = planned.param_names
        moved, wanted = _change(launched.before, launched.after, names), _change(launched.before, update.after, names)
        weight_norm = _norm(launched.before[name] for name in names)
        groups.append(
            GroupReading(
                name=planned.name,
                tower=planned.tower,
                num_parameters=planned.num_parameters,
                lr=(planned.lr * scale, applied["lr"]),
                weight_decay=(planned.weight_decay, applied["weight_decay"]),
                max_grad_norm=(planned.max_grad_norm, applied["max_grad_norm"]),
                gradient=closeness([found[n] for n in names], [plain.gradients[n] for n in names], floor=floor),
                gradient_without_temperature=of_gradients(n for n in names if n not in temperatures),
                update=closeness(moved, wanted, slack=ROUNDING * weight_norm),
                state=closeness(_states(launched.state, names), _states(update.state, names)),
                update_to_weight=_norm(moved) / weight_norm if weight_norm else math.inf,
            )
        )
    frozen = run.plan.frozen
    return Reading(
        world_size=launched.world_size,
        num_micro_batches=launched.num_micro_batches,
        groups=groups,
        temperature=of_gradients(temperatures),
        losses=(sum(launched.losses.values()), sum(plain.losses.values())),
        same_samples=launched.sample_ids == plain.sample_ids,
        num_samples=len(launched.sample_ids),
        other_start=[name for name, weight in plain.before.items() if not torch.equal(launched.before[name], weight)],
        num_frozen=len(frozen),
        moved=[name for name in frozen if not torch.equal(launched.before[name], launched.after[name])],
        other_buffers=_other_buffers(launched.buffers, plain.buffers),
        clipped_norm=update.clipped_norm,
        draws=plain.how == AS_DRAWN,
        remarks=launched.remarks,
    )


def _change(before: Named, after: Named, names: Iterable[str]) -> list[Tensor]:
    return [after[name].double() - before[name].double() for name in names]


def _states(state: dict[str, Named], names: Iterable[str]) -> list[Tensor]:
    return [state[kind][name] for name in names for kind in sorted(state)]


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _other_buffers(found: Named, wanted: Named) -> list[str]:
    """Buffers that the step left otherwise; statistics may differ by rounding."""
    return [
        name
        for name, value in wanted.items()
        if name in found and not torch.allclose(found[name].double(), value.double(), rtol=1e-3, atol=1e-5)
    ]
