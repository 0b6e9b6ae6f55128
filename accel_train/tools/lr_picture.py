"""A picture of every group's learning rate over the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.config.schema import ScheduleSection
from accel_train.errors import UserError
from accel_train.optim.param_groups import GroupPlan

TOWER_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4b94", "#b8860b", "#2a9d8f", "#5c677d", "#a23b72")
"""Distinct hues of similar darkness; layers are lighter shades of their tower's."""
INK, FAINT = "#22252a", "#9aa0a8"
DECADES_BELOW_LOWEST = 2.1
"""How far below the lowest base rate the axis goes, for schedules that end at 0."""
MOST_POINTS = 2000
DASH = 4.0
"""Length of a dash, in line widths."""


@dataclass(frozen=True, slots=True)
class Label:
    """Text at the right edge, at the height of a base learning rate."""

    lr: float
    text: str
    colour: str
    bold: bool


@dataclass(frozen=True, slots=True)
class PhaseRates:
    """The groups of one phase, and the schedule's scale at each of its steps."""

    name: str
    start: int
    plan: GroupPlan
    schedule: ScheduleSection
    scales: Sequence[float]


def draw_learning_rates(phases: Sequence[PhaseRates], path: str) -> None:
    """Writes a PNG, SVG or PDF by the suffix of `path`. Labels stand for the last phase."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise UserError("plan --picture needs matplotlib: pip install 'accel_train[plot]'", code="AT203") from missing
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--picture: {path} must end in .png, .svg or .pdf.")
    figure = Figure(figsize=(10, 5.6), dpi=150, facecolor="white")
    axes = figure.add_axes((0.075, 0.12, 0.685, 0.72))
    colours = _colours(phases)
    for phase in phases:
        _draw_lines(axes, phase, colours)
    _style(axes, phases)
    _draw_boundaries(axes, phases)
    _draw_labels(axes, _labels(phases[-1].plan, colours))
    figure.text(0.075, 0.93, "Learning rate of every parameter group", fontsize=15, fontweight="bold", color=INK)
    figure.text(0.075, 0.885, _subtitle(phases), fontsize=10.5, color="#5b616a")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.2)


def ladders(plan: GroupPlan) -> dict[str, list[tuple[int, float]]]:
    """For each tower its (layer, base rate), from input to output; groups of one layer learn at one rate."""
    found: dict[str, list[tuple[int, float]]] = {}
    for group in plan.groups:
        rungs = found.setdefault(group.tower, [])
        if (group.layer, group.lr) not in rungs:
            rungs.append((group.layer, group.lr))
    return found


def _draw_lines(axes: Any, phase: PhaseRates, colours: dict[str, str]) -> None:
    """One curve for each layer. Towers that share a rate share its curve, in dashes of their colours in turn."""
    scales, start = phase.scales, phase.start
    every = max(1, len(scales) // MOST_POINTS)
    steps = [*range(0, len(scales), every), len(scales) - 1]
    peak = max(range(len(scales)), key=lambda step: scales[step])
    found = ladders(phase.plan)
    for tower, rungs in found.items():
        colour = colours[tower]
        for position, (_, lr) in enumerate(rungs):
            shade = _shade(colour, 1.0 if len(rungs) == 1 else position / (len(rungs) - 1))
            sharing = [name for name, others in found.items() if any(math.isclose(lr, rate) for _, rate in others)]
            dashes = {}
            if len(sharing) > 1:
                gap = DASH * (len(sharing) - 1)
                dashes = {"linestyle": (DASH * sharing.index(tower), (DASH, gap)), "dash_capstyle": "butt"}
            width = 2.0 if position == len(rungs) - 1 else 1.1
            axes.plot(
                [start + step for step in steps],
                [lr * scales[step] for step in steps],
                color=shade,
                linewidth=width,
                **dashes,
            )
            if position in (0, len(rungs) - 1):
                guide = [lr * scales[peak]] * 2
                axes.plot(
                    [start + peak, start + len(scales) - 1],
                    guide,
                    color=shade,
                    linewidth=0.7,
                    linestyle=(0, (1, 3)),
                    zorder=1,
                )


def _style(axes: Any, phases: Sequence[PhaseRates]) -> None:
    rates = [group.lr for phase in phases for group in phase.plan.groups]
    axes.set_yscale("log")
    lowest_seen = min(rates) * max(min(scale for phase in phases for scale in phase.scales), 1e-30)
    axes.set_ylim(max(lowest_seen / 1.5, min(rates) / 10**DECADES_BELOW_LOWEST), max(rates) * 1.6)
    axes.set_xlim(0, max(1, phases[-1].start + len(phases[-1].scales) - 1))
    axes.set_xlabel("optimizer step", color=INK, fontsize=10.5)
    axes.grid(axis="y", which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(which="both", colors="#5b616a", labelsize=9.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c4c8ce")


def _draw_boundaries(axes: Any, phases: Sequence[PhaseRates]) -> None:
    for phase in phases[1:]:
        axes.axvline(phase.start, color=FAINT, linewidth=0.8, zorder=0)
        axes.text(
            phase.start, 0.985, f" {phase.name}", transform=axes.get_xaxis_transform(), va="top", fontsize=9, color=INK
        )


def _labels(plan: GroupPlan, colours: dict[str, str]) -> list[Label]:
    """The top layer of each tower by name and rate, and its lowest layer where there is a ladder."""
    labels = []
    for tower, rungs in ladders(plan).items():
        colour = colours[tower]
        bottom, top = rungs[0], rungs[-1]
        text = tower if len(rungs) == 1 else f"{tower}, layer {top[0]}"
        labels.append(Label(top[1], f"{text}   {rate_text(top[1])}", _shade(colour, 1.0), bold=True))
        if len(rungs) > 1:
            labels.append(
                Label(bottom[1], f"{tower}, layer {bottom[0]}   {rate_text(bottom[1])}", _shade(colour, 0.35), False)
            )
    return sorted(labels, key=lambda label: -label.lr)


def rate_text(lr: float) -> str:
    """Three digits and a power of ten: 2.39e-5."""
    digits, exponent = f"{lr:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _draw_labels(axes: Any, labels: list[Label]) -> None:
    """Labels stand beside the axes at the height of their base rate, moved apart where they would overlap."""
    height = axes.transData.transform
    to_axes = axes.transAxes.inverted().transform
    wanted = [float(to_axes(height((0, label.lr)))[1]) for label in labels]
    for label, at, moved in zip(labels, wanted, spread(wanted, 0.052), strict=True):
        axes.plot(
            [1.005, 1.02, 1.035],
            [at, at, moved],
            transform=axes.transAxes,
            color=label.colour,
            linewidth=0.9,
            clip_on=False,
        )
        weight = "bold" if label.bold else "normal"
        axes.text(
            1.042,
            moved,
            label.text,
            transform=axes.transAxes,
            va="center",
            fontsize=9.5,
            color=label.colour,
            fontweight=weight,
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Moves descending heights apart until neighbours are at least `gap` from each other, each as little as needed.

    Neighbours that overlap become one cluster around their mean, as in isotonic regression.
    """
    clusters: list[list[float]] = []
    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and _bottom(clusters[-2], gap) - gap < _top(clusters[-1], gap):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [_top(cluster, gap) - index * gap for cluster in clusters for index in range(len(cluster))]


def _top(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) + gap * (len(cluster) - 1) / 2


def _bottom(cluster: list[float], gap: float) -> float:
    return sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2


def _colours(phases: Sequence[PhaseRates]) -> dict[str, str]:
    """A colour for each tower, the same in all phases."""
    towers = dict.fromkeys(tower for phase in phases for tower in ladders(phase.plan))
    return {tower: TOWER_COLOURS[index % len(TOWER_COLOURS)] for index, tower in enumerate(towers)}


def _shade(colour: str, share: float) -> str:
    """The colour itself at share 1, mixed with white below; never so pale that it is lost."""
    strength = 0.35 + 0.65 * share
    parts = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) * strength):02x}" for part in parts)


def _subtitle(phases: Sequence[PhaseRates]) -> str:
    towers = len(_colours(phases))
    total = phases[-1].start + len(phases[-1].scales)
    if len(phases) > 1:
        return f"{towers} towers in {len(phases)} phases over {total:,} steps.  Log scale."
    phase = phases[0]
    schedule, groups = phase.schedule, len(phase.plan.groups)
    warmup = next((step for step, scale in enumerate(phase.scales) if scale >= 1), 0)
    end = "then constant"
    if schedule.name != "constant":
        end = f"down to {schedule.min_lr_ratio:g} of it" if schedule.min_lr_ratio else "down to 0"
    return (
        f"{towers} towers, {groups} groups.  {schedule.name.capitalize()} over {total:,} steps, full rate at step "
        f"{warmup:,}, {end}.  Log scale."
    )
