"""Pictures of a sweep: how the score rose over the trials, which keys mattered, and what their good values are."""

from pathlib import Path
from typing import Any

import numpy as np

from accel_train.tools.sweep.settings import Sweep
from accel_train.tools.sweep.space import Choice, as_text

INK, SOFT, FAINT, GRID = "#22252a", "#5b616a", "#b3b9c1", "#e6e8eb"
BLUE, RED = "#1b6ca8", "#c8553d"
HISTORY, IMPORTANCE = "history.png", "importance.png"
MOST_KEYS = 12
"""Keys drawn, the most important ones first."""


def draw_pictures(found: dict[str, Any], sweep: Sweep) -> list[Path]:
    """Takes a sweep's summary. Draws what there is enough of, and returns the files."""
    written = []
    if any(trial["score"] is not None for trial in found["trials"]):
        written.append(draw_history(found, sweep.folder / HISTORY))
    if found["importance"]:
        written.append(draw_importance(found, sweep, sweep.folder / IMPORTANCE))
    return written


def draw_history(found: dict[str, Any], path: Path) -> Path:
    """Every trial's score, and the best so far as a stepped line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), dpi=150, facecolor="white")
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.68))
    trials = [trial for trial in found["trials"] if trial["score"] is not None]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    pruned = [trial for trial in trials if trial["state"] != "complete"]
    failed = [trial["trial"] for trial in found["trials"] if trial["state"] == "failed"]
    if complete:
        numbers = [trial["trial"] for trial in complete] + [len(found["trials"]) - 1]
        best = np.maximum.accumulate([trial["score"] for trial in complete]).tolist()
        axes.step(numbers, [*best, best[-1]], where="post", color=BLUE, linewidth=1.6, label="best so far", zorder=2)
    for kind, colour, label in ((complete, BLUE, "complete"), (pruned, FAINT, "ended early, best until then")):
        if kind:
            points = [trial["trial"] for trial in kind], [trial["score"] for trial in kind]
            axes.scatter(*points, s=30, color=colour, label=label, zorder=3, edgecolors="white", linewidths=0.6)
    if failed:
        lowest = min(trial["score"] for trial in trials)
        axes.scatter(failed, [lowest] * len(failed), s=34, marker="x", color=RED, label="failed (no score)", zorder=3)
    _style(axes, "trial", found["score"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.6, max(1, len(found["trials"]) - 1) + 0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.08), ncols=4, frameon=False, fontsize=9.5, borderaxespad=0)
    best_of = found["best"]
    subtitle = f"{found['sweep_dir']}: " + (
        f"best {best_of['score']:.4f} in trial {best_of['trial']}" if best_of else "no trial is complete yet"
    )
    _title(figure, 0.09, f"{found['score']} of every trial", subtitle)
    figure.savefig(path)
    return path


def draw_importance(found: dict[str, Any], sweep: Sweep, path: Path) -> Path:
    """A row for each key: how much it mattered, and the score of every complete trial along it."""
    from matplotlib.figure import Figure

    keys = sorted(found["importance"], key=found["importance"].__getitem__, reverse=True)[:MOST_KEYS]
    trials = [trial for trial in found["trials"] if trial["state"] == "complete"]
    row, top, bottom = 1.35, 1.25, 0.35
    height = top + row * len(keys) + bottom
    figure = Figure(figsize=(9.5, height), dpi=150, facecolor="white")
    largest = found["importance"][keys[0]]
    for place, key in enumerate(keys):
        y = (bottom + row * (len(keys) - 1 - place)) / height
        bar = figure.add_axes((0.03, y + 0.45 / height, 0.36, 0.2 / height))
        bar.set_axis_off()
        bar.set_xlim(0, 1)
        bar.barh([0], [found["importance"][key] / largest * 0.86], color=BLUE, height=1)
        bar.text(
            found["importance"][key] / largest * 0.86 + 0.02,
            0,
            f"{found['importance'][key]:.0%}",
            va="center",
            color=INK,
        )
        bar.text(0, 1.0, key, va="bottom", color=INK, fontsize=10.5)
        axes = figure.add_axes((0.47, y + 0.42 / height, 0.5, (row - 0.55) / height))
        _draw_along(axes, key, trials, sweep, found["best"])
    _title(figure, 0.03, "Which keys mattered", "", height)
    about = "Left: share in what sets the better trials apart (PED-ANOVA). "
    about += f"Right: {found['score']} along the key, the best trial in red."
    figure.text(0.03, 1 - 0.78 / height, about, fontsize=9.5, color=SOFT, va="bottom")
    count = f"{len(trials)} complete trials of {found['sweep_dir']}" + (
        f"; the {MOST_KEYS} most important keys" if len(found["importance"]) > MOST_KEYS else ""
    )
    figure.text(0.03, 1 - 1.0 / height, count, fontsize=9.5, color=SOFT, va="bottom")
    figure.savefig(path)
    return path


def _draw_along(axes: Any, key: str, trials: list[dict[str, Any]], sweep: Sweep, best: dict[str, Any]) -> None:
    part = sweep.space.searched[key]
    trials = sorted(trials, key=lambda trial: bool(trial["trial"] == best["trial"]))  # the best one on top
    values = [trial["values"][key] for trial in trials]
    if isinstance(part, Choice):
        places: list[float] = [part.texts().index(as_text(value)) for value in values]
        axes.set_xticks(range(len(part.values)), [text if len(text) < 24 else text[:23] + "…" for text in part.texts()])
        axes.set_xlim(-0.5, len(part.values) - 0.5)
    else:
        places = values
        if part.kind == "log":
            axes.set_xscale("log")
        margin = 0.03 * (part.high - part.low)
        axes.set_xlim(
            *((part.low / 1.15, part.high * 1.15) if part.kind == "log" else (part.low - margin, part.high + margin))
        )
    colours = [RED if trial["trial"] == best["trial"] else BLUE for trial in trials]
    scores = [trial["score"] for trial in trials]
    axes.scatter(places, scores, s=22, c=colours, edgecolors="white", linewidths=0.5)
    _style(axes, None, None)
    axes.tick_params(labelsize=8)
    axes.yaxis.get_major_locator().set_params(nbins=3)


def _style(axes: Any, x: str | None, y: str | None) -> None:
    axes.set_xlabel(x or "", color=INK, fontsize=10.5)
    axes.set_ylabel(y or "", color=INK, fontsize=10.5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=SOFT, which="both")


def _title(figure: Any, left: float, title: str, subtitle: str, height: float = 5.0) -> None:
    figure.text(left, 1 - 0.45 / height, title, fontsize=15, fontweight="bold", color=INK, va="bottom")
    if subtitle:
        figure.text(left, 1 - 0.66 / height, subtitle, fontsize=10, color=SOFT, va="bottom")
