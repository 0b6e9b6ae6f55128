"""A reading as a table and as JSON."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from accel_train.tools.verify.comparison import GroupReading, Reading
from accel_train.tools.verify.verdict import Tolerance, named, problems, wrong_groups

SETTINGS = ("lr asked", "applied", "decay", "clip")
NUMBERS = ("grad", "error", "cosine", "length", "update", "upd/weight")
MIN_WIDTH = 110
"""Columns that the whole table needs."""
PAIRS = ("lr", "weight_decay", "max_grad_norm")


def print_tables(reading: Reading, tolerance: Tolerance, console: Console) -> None:
    """A line for each parameter group; what is off is marked. On a narrow terminal settings and numbers stand apart."""
    marked = wrong_groups(reading, tolerance)
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    if console.width < MIN_WIDTH:
        console.print(_table(reading, marked, SETTINGS), _table(reading, marked, NUMBERS))
    else:
        console.print(_table(reading, marked, (*SETTINGS, *NUMBERS)))


def _table(reading: Reading, marked: Collection[str], columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("group", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for group in reading.groups:
        cells = dict(zip((*SETTINGS, *NUMBERS), _cells(group), strict=True))
        table.add_row(group.name, *(cells[name] for name in columns), style="red" if group.name in marked else None)
    return table


def _cells(group: GroupReading) -> list[str]:
    clip = group.max_grad_norm[0]
    return [
        f"{group.lr[0]:.3g}",
        f"{group.lr[1]:.3g}",
        f"{group.weight_decay[1]:g}",
        "" if clip is None else f"{clip:g}",
        f"{group.gradient.norm:.3g}",
        f"{group.gradient.error:.1e}",
        f"{group.gradient.cosine:.4f}",
        f"{group.gradient.ratio:.4f}",
        f"{max(group.update.error, group.state.error):.1e}",
        f"{group.update_to_weight:.1e}",
    ]


def step_lines(reading: Reading, tolerance: Tolerance) -> list[str]:
    """What the table does not hold, in sentences."""
    found, wanted = reading.losses
    lines = [
        f"samples: {reading.num_samples}, {'the same ids in the same order' if reading.same_samples else 'OTHER IDS'}",
        f"loss: {found:.8g}, in one process {wanted:.8g} (difference {found - wanted:+.1e})",
    ]
    if reading.temperature is not None:
        lines.append(f"gradient of the temperature: {reading.temperature.ratio:.7f} × that of one process")
    if reading.num_frozen:
        lines.append(
            f"frozen: {reading.num_frozen} tensors, {f'MOVED: {named(reading.moved)}' if reading.moved else 'unmoved'}"
        )
    lines.append(f"tolerances: {tolerance.gradient:g} for gradients and loss, {tolerance.update:g} for updates")
    return lines


def as_json(reading: Reading, tolerance: Tolerance) -> dict[str, Any]:
    """Numbers that are not finite are null: JSON has no others."""
    found = problems(reading, tolerance)
    content = asdict(reading)
    for group in content["groups"]:
        group |= {key: dict(zip(("asked", "applied"), group[key], strict=True)) for key in PAIRS}
    content["losses"] = dict(zip(("launched", "one_process"), content["losses"], strict=True))
    verdict = {
        "passed": not found,
        "problems": found,
        "wrong_groups": sorted(wrong_groups(reading, tolerance)),
        "tolerance": asdict(tolerance),
    }
    return {**verdict, **_finite(content)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
