"""The table of parameter groups that `plan` and `train` print."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich import box
from rich.table import Table

from accel_train.optim.param_groups import GroupPlan, ParamGroup


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a group, or neighbouring groups of one tower together."""

    tower: str
    name: str
    layers: str
    num_tensors: int
    num_parameters: int
    lr: str
    weight_decay: str
    max_grad_norm: str


def group_table(plan: GroupPlan, *, max_rows: int | None = None) -> Table:
    """Every group with its layers, size, base learning rate, weight decay and clipping; frozen parts; totals.

    With more than `max_rows` groups, the groups of a layer share a line, and then those of a tower.
    """
    trained = sum(group.num_parameters for group in plan.groups)
    total = trained + sum(part.num_parameters for part in plan.frozen_parts)
    num_tensors = sum(len(group.param_names) for group in plan.groups)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False, collapse_padding=True)
    footers = {"layer": "", "tensors": str(num_tensors), "parameters": f"{trained:,}", "%": _percent(trained, total)}
    # On a narrow terminal names are folded, so that no number is cut.
    table.add_column("group", "all that trains" if plan.frozen_parts else "all", overflow="fold")
    for name in ("layer", "tensors", "parameters", "%", "lr", "decay", "clip"):
        table.add_column(name, footers.get(name, ""), justify="right", no_wrap=True)
    for _, tower_rows in groupby(_rows(plan.groups, max_rows), key=lambda row: row.tower):
        for row in tower_rows:
            sizes = (str(row.num_tensors), f"{row.num_parameters:,}", _percent(row.num_parameters, total))
            table.add_row(row.name, row.layers, *sizes, row.lr, row.weight_decay, row.max_grad_norm)
        table.add_section()
    for part in plan.frozen_parts:
        sizes = (str(len(part.param_names)), f"{part.num_parameters:,}", _percent(part.num_parameters, total))
        table.add_row(part.tower or "(no tower)", "", *sizes, "frozen", "", "", style="dim")
    return table


def _rows(groups: Sequence[ParamGroup], max_rows: int | None) -> list[Row]:
    rows = [_row([group], group.name) for group in groups]
    if max_rows is not None and len(rows) > max_rows:
        by_layer = groupby(groups, key=lambda group: (group.tower, group.layer))
        rows = [_row(joined, joined[0].name) for joined in (list(groups) for _, groups in by_layer)]
    if max_rows is not None and len(rows) > max_rows:
        rows = [_row(list(joined), tower) for tower, joined in groupby(groups, key=lambda group: group.tower)]
    return rows


def _row(groups: list[ParamGroup], name: str) -> Row:
    clips = sorted({group.max_grad_norm for group in groups if group.max_grad_norm is not None})
    return Row(
        tower=groups[0].tower,
        name=name,
        layers=_range([layer for group in groups for layer in (group.layer - group.num_layers + 1, group.layer)], "d"),
        num_tensors=sum(len(group.param_names) for group in groups),
        num_parameters=sum(group.num_parameters for group in groups),
        lr=_range([group.lr for group in groups], ".3g"),
        weight_decay=", ".join(
            f"{value:g}" for value in sorted({group.weight_decay for group in groups}, reverse=True)
        ),
        max_grad_norm=", ".join(f"{value:g}" for value in clips),
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low}–{high}"


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f}"
