"""Which learning rate, weight decay and clipping each parameter gets.

Plan before the engine prepares the model: names are then the model's own, and shapes are whole (ZeRO-3 empties them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from accel_train.config.schema import OptimizerSection, Tower
from accel_train.errors import UserError
from accel_train.optim.towers import Place, assign
from accel_train.optim.weight_decay import exempt_parameters

NamedParameter = tuple[str, nn.Parameter]
Members = dict[tuple[int, int, int, bool], list[NamedParameter]]
"""Parameters by (tower, layer, first step, exempt from weight decay)."""


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """Parameters that learn alike. `lr` is the base rate; the schedule multiplies it."""

    name: str
    """`image.03`, or `image` where all layers of the tower learn at one rate. Where only some of its parameters are
    exempt from weight decay, these are a group of their own, `image.03.no_decay`."""
    tower: str
    layer: int
    """Number of the layer in its tower, 0 nearest the input; the last layer, where the group holds several."""
    num_layers: int
    """Layers in the group: 1, or all that train where the tower's layers learn at one rate."""
    param_names: tuple[str, ...]
    num_parameters: int
    """Scalar weights, over all tensors of the group."""
    lr: float
    weight_decay: float
    max_grad_norm: float | None
    """The tower's own clipping: the norm is over all groups of the tower together."""
    first_step: int = 0
    """The step of the run at which its optimizer state was empty; below 0 where it was brought from another run."""


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """Parameters of one tower that don't train."""

    tower: str | None
    """None for parameters that no tower names and that need no gradient by themselves."""
    param_names: tuple[str, ...]
    num_parameters: int


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Every parameter of a model is in exactly one group or in one frozen part."""

    groups: list[ParamGroup]
    """In the order of the towers, from input to output. None is empty."""
    frozen_parts: list[FrozenPart]
    """In the order of the towers."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of all parameters that don't train."""
        return tuple(name for part in self.frozen_parts for name in part.param_names)

    def that_begin_at(self, step: int) -> frozenset[str]:
        """Names of the parameters that have not been updated before this step."""
        return frozenset(name for group in self.groups if group.first_step == step for name in group.param_names)


def plan_groups(model: nn.Module, config: OptimizerSection, first_steps: Mapping[str, int] | None = None) -> GroupPlan:
    """Groups for the parameters that train. Reads names, shapes and requires_grad, so the meta device will do.

    Frozen are parameters that already need no gradient (a fixed temperature), towers with lr 0, and layers below
    `train_last`. A tower without layer decay makes one group of all its layers, because ZeRO pays for each group. Parameters
    with another first step (by name; left out: 0) are in another group: an engine may keep one count of updates for a group.

    Raises UserError where towers and parameters do not fit each other.
    """
    parameters = list(model.named_parameters())
    _refuse_emptied(parameters)
    fixed = {name for name, parameter in parameters if not parameter.requires_grad}
    buffers = [name for name, _ in model.named_buffers()]
    places = assign([name for name, _ in parameters], config.towers, optional=fixed, buffers=buffers)
    num_layers = [
        1 + max((place.layer for place in places.values() if place.tower == index), default=-1)
        for index in range(len(config.towers))
    ]
    _refuse_train_last(config.towers, num_layers)
    exempt = exempt_parameters(parameters, config)

    frozen: dict[int, list[NamedParameter]] = {}
    members: Members = {}
    first_steps = first_steps or {}
    for name, parameter in parameters:
        if name in fixed or not _trains(places[name], config.towers, num_layers):
            tower_index = places[name].tower if name in places else len(config.towers)
            frozen.setdefault(tower_index, []).append((name, parameter))
            continue
        tower = config.towers[places[name].tower]
        decays = name not in exempt or _weight_decay(tower, config) == 0
        layer = places[name].layer if tower.layer_decay < 1 else num_layers[places[name].tower] - 1
        key = places[name].tower, layer, first_steps.get(name, 0), not decays
        members.setdefault(key, []).append((name, parameter))
    if not members:
        raise UserError(
            "optimizer.towers: all parameters are frozen, so nothing would train. Give a tower an lr above 0.",
            code="AT122",
        )
    groups = [_group(config, key, num_layers[key[0]], members) for key in sorted(members)]
    towers = [*(tower.name for tower in config.towers), None]
    parts = [
        FrozenPart(towers[index], tuple(name for name, _ in frozen[index]), _count(frozen[index]))
        for index in sorted(frozen)
    ]
    return GroupPlan(groups, parts)


def freeze(model: nn.Module, plan: GroupPlan) -> None:
    """Sets requires_grad as planned. Call it before the engine prepares the model: later changes go wrong unseen."""
    frozen = set(plan.frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def set_train_mode(model: nn.Module) -> None:
    """Train mode, except for modules whose parameters are all frozen: these stay in eval mode with all they contain.

    So a frozen layer's dropout is off and its BatchNorm keeps its statistics, as it was when the layer was trained.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _group(config: OptimizerSection, key: tuple[int, int, int, bool], num_layers: int, members: Members) -> ParamGroup:
    index, layer, first_step, spared = key
    tower, own = config.towers[index], members[key]
    name = f"{tower.name}.{layer:02d}" if tower.layer_decay < 1 else tower.name
    if first_step > min(step for where, _, step, _ in members if where == index):
        name += f".since_{first_step}"
    return ParamGroup(
        name=f"{name}.no_decay" if spared and (index, layer, first_step, False) in members else name,
        tower=tower.name,
        layer=layer,
        num_layers=1 if tower.layer_decay < 1 else min(num_layers, tower.train_last or num_layers),
        param_names=tuple(name for name, _ in own),
        num_parameters=_count(own),
        lr=tower.lr * tower.layer_decay ** (num_layers - 1 - layer),
        weight_decay=0.0 if spared else _weight_decay(tower, config),
        max_grad_norm=tower.max_grad_norm,
        first_step=first_step,
    )


def _count(parameters: list[NamedParameter]) -> int:
    return sum(parameter.numel() for _, parameter in parameters)


def _weight_decay(tower: Tower, config: OptimizerSection) -> float:
    return config.weight_decay if tower.weight_decay is None else tower.weight_decay


def _trains(place: Place, towers: Sequence[Tower], num_layers: list[int]) -> bool:
    tower = towers[place.tower]
    first = 0 if tower.train_last is None else num_layers[place.tower] - tower.train_last
    return tower.lr > 0 and place.layer >= first


def _refuse_train_last(towers: Sequence[Tower], num_layers: list[int]) -> None:
    for tower, count in zip(towers, num_layers, strict=True):
        if tower.train_last is not None and tower.train_last > count:
            raise UserError(
                f"optimizer.towers.{tower.name}.train_last is {tower.train_last}, but the tower has {count} layers. "
                f"Use at most {count}, or leave it out to train them all.",
                code="AT121",
            )


def _refuse_emptied(parameters: list[NamedParameter]) -> None:
    for name, parameter in parameters:
        if parameter.numel() == 0:
            raise ValueError(f"'{name}' is empty: plan the groups before an engine shards the weights.")
