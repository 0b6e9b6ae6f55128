"""Pictures of scaling and of what fits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_train.errors import UserError
from accel_train.tools.lr_picture import FAINT, INK, TOWER_COLOURS, spread
from accel_train.tools.plan.fits import Fit
from accel_train.tools.plan.scale import GOOD, Scaling

SOFT = "#5b616a"
LOWEST_LABEL = 0.03


def draw_scaling(found: Scaling, engine: str, title: str, path: str) -> None:
    """Efficiency over the number of GPUs, a line for each name in `points`; that of `engine` is thick."""
    figure, axes = _figure(path)
    names = list(found.points)
    ends = {name: points[-1].efficiency for name, points in found.points.items()}
    for name, colour in zip(names, TOWER_COLOURS, strict=False):
        points = found.points[name]
        width = 2.6 if name == engine else 1.3
        axes.plot(
            [point.num_gpus for point in points], [point.efficiency for point in points], color=colour, linewidth=width
        )
    last = found.points[names[0]][-1].num_gpus
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, last)
    axes.set_ylim(0, 1.05)
    axes.axhline(GOOD, color=FAINT, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("GPUs", color=INK, fontsize=10.5)
    ordered = sorted(names, key=lambda name: -ends[name])
    heights = spread([ends[name] for name in ordered], 0.055)
    lifted = max(0.0, LOWEST_LABEL - heights[-1])
    for name, height in zip(ordered, heights, strict=True):
        colour = TOWER_COLOURS[names.index(name)]
        weight = "bold" if name == engine else "normal"
        text = f"{name}   {ends[name]:.0%}"
        axes.annotate(
            text, (1, (height + lifted) / 1.05), (8, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            color=colour, fontsize=9.5, fontweight=weight,
        )  # fmt: skip
    links = found.links
    subtitle = (
        f"Model, not a measurement.  {links.intra_node / 1e9:g} GB/s in a node of {links.gpus_per_node}, "
        f"{links.inter_node / 1e9:g} GB/s between nodes, {links.latency * 1e6:g} µs.  Dotted: {GOOD:.0%}."
    )
    _save(figure, f"Efficiency of {title}", subtitle, path)


def draw_fits(found: Sequence[Fit], limit: int, title: str, path: str) -> None:
    """A pair of bars for each engine: micro_batch_size with blocks kept and recomputed."""
    figure, axes = _figure(path)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    for row, pair in enumerate(pairs):
        for offset, fit, colour in zip((-0.19, 0.19), pair, TOWER_COLOURS, strict=False):
            axes.barh(row + offset, fit.micro_batch_size, height=0.34, color=colour)
            said = f" {fit.micro_batch_size:,}" if fit.micro_batch_size else " does not fit"
            axes.text(fit.micro_batch_size, row + offset, said, va="center", fontsize=9.5, color=INK)
    axes.set_yticks(range(len(pairs)), [kept.engine for kept, _ in pairs])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(0, max(1.0, 1.15 * max(fit.micro_batch_size for fit in found)))
    axes.set_xlabel("micro_batch_size", color=INK, fontsize=10.5)
    for position, label in enumerate(("blocks kept", "blocks recomputed")):
        axes.text(
            0.99, 0.1 - 0.06 * position, label, transform=axes.transAxes, ha="right", color=TOWER_COLOURS[position],
            fontsize=10, fontweight="bold",
        )  # fmt: skip
    _save(figure, f"What fits into {limit / 2**30:.3g} GiB", title, path)


def _figure(path: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise UserError("plan --picture needs matplotlib: pip install 'accel_train[plot]'", code="AT203") from missing
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--picture: {path} must end in .png, .svg or .pdf.")
    figure = Figure(figsize=(10, 5.6), dpi=150, facecolor="white")
    axes = figure.add_axes((0.075, 0.12, 0.8, 0.72))
    axes.grid(axis="y", which="major", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=SOFT, labelsize=9.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c4c8ce")
    return figure, axes


def _save(figure: Any, title: str, subtitle: str, path: str) -> None:
    figure.text(0.075, 0.93, title, fontsize=15, fontweight="bold", color=INK)
    figure.text(0.075, 0.885, subtitle, fontsize=10.5, color=SOFT)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.2)
