"""The curves of a range test as a page and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from accel_train.tools.find_lr.curve import RangeTest
from accel_train.tools.find_lr.table import Rate, cells, header
from accel_train.tools.page.chart import Chart, Line, Mark, chart
from accel_train.tools.page.page import page, table

INK, PALE, ALARM = "#1b6ca8", "#9cc3e0", "#a4262c"


def write_page(path: Path, tests: Sequence[RangeTest], rows: Sequence[Rate]) -> None:
    """One self-contained HTML file."""
    charts = Markup("").join(chart(_chart(test)) for test in tests)
    sections = [("Range test", Markup('<div class="grid-of-charts">{}</div>').format(charts))]
    if rows:
        caption = f"{rows[0].steps} steps at each rate, all from the same weights"
        sections.append(
            ("Trained at each rate", table(header(rows), (cells(row, rows) for row in rows), caption=caption))
        )
    subtitle = "one step at each rate, rising exponentially; all curves begin at the same weights"
    path.write_text(page("Learning rate range test", sections, subtitle=subtitle), encoding="utf-8")


def _chart(test: RangeTest) -> Chart:
    smoothed = test.reading.smoothed
    return Chart(
        f"{test.what}: loss over the rate of {test.tower}",
        "learning rate",
        [
            Line("loss", test.tried, test.losses, faint=True, colour=0),
            Line("smoothed loss", test.tried[: len(smoothed)], smoothed),
        ],
        log_x=True,
        marks=[Mark(rate, text) for rate, text in _marks(test)],
        note=test.reading.reason[0].upper() + test.reading.reason[1:],
    )


def _marks(test: RangeTest) -> list[tuple[float, str]]:
    reading = test.reading
    named = ((reading.steepest, "steepest"), (reading.suggestion, "suggested"), (reading.turn, "turns"))
    return [(rate, f"{name} {rate:.2g}") for rate, name in named if rate is not None]


def write_picture(path: Path, tests: Sequence[RangeTest]) -> bool:
    """A PNG. False if matplotlib is not there to draw it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 3.6 * len(tests)), dpi=130, layout="constrained")
    for axes, test in zip(figure.subplots(len(tests), squeeze=False)[:, 0], tests, strict=True):
        axes.plot(test.tried, test.losses, color=PALE, linewidth=1, label="loss")
        smoothed = test.reading.smoothed
        axes.plot(test.tried[: len(smoothed)], smoothed, color=INK, linewidth=2, label="smoothed loss")
        for row, (rate, text) in enumerate(_marks(test)):
            axes.axvline(rate, color=ALARM, linestyle="--", linewidth=1)
            place = axes.get_xaxis_transform()
            axes.text(rate, 0.98 - 0.08 * row, f"{text} ", color=ALARM, ha="right", va="top", transform=place)
        axes.set(xscale="log", xlabel=f"learning rate of {test.tower}", ylabel="loss", title=test.what)
        low, high = min(smoothed, default=0.0), max(smoothed[: len(smoothed) // 2], default=1.0)
        if low < high:  # an explosion at the end would flatten the rest
            axes.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)
    return True
