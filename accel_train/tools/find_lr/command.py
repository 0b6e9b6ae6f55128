"""`accel-train find-lr`: the loss while the learning rate rises, from one snapshot that every curve starts at."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from accel_train.config.schema import RunConfig, ScheduleSection
from accel_train.errors import UserError
from accel_train.interrupts import uninterrupted
from accel_train.run import Run
from accel_train.step import StepLosses
from accel_train.tools.find_lr.curve import MIN_STEPS, RangeTest, exponential_rates, has_diverged, read_curve
from accel_train.tools.find_lr.pictures import write_page, write_picture
from accel_train.tools.find_lr.steps import take_steps
from accel_train.tools.find_lr.table import Rate, rate_table, train_at_each
from accel_train.tools.rehearsal import Snapshot, rehearsal
from accel_train.writable import check_writable

ALL = "all towers"


@dataclass(frozen=True, slots=True)
class Limits:
    first: float
    last: float
    steps: int


def find_lr(
    config: RunConfig,
    *,
    limits: Limits,
    towers: list[str],
    table: list[float],
    table_steps: int | None,
    test_split: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Draws a curve for all towers together or for each of `towers` alone, and trains briefly at each rate of `table`.

    Raises UserError for limits or towers that make no test.
    """
    check_limits(limits)
    folder = Path(output or Path(config.run_dir) / "find_lr")
    check_writable(folder / "find_lr.json", "run_dir" if output is None else "--output", makes_folders=True)
    trained = {tower.name: tower.lr for tower in config.optimizer.towers if tower.lr > 0}
    if unknown := [name for name in towers if name not in trained]:
        raise UserError(
            f"--tower: {unknown[0]!r} is no tower of this configuration that learns; those are {', '.join(trained)}."
        )
    if test_split is not None and not table:
        raise UserError("--test-split: only the table has scores; give --table too.")
    if table and config.data.valid_split is None:
        raise UserError("--table: data.valid_split is null, so there is no score to compare rates by.")
    with rehearsal(as_test(config, limits.steps), quiet=as_json) as run:
        snapshot = Snapshot.of(run) if len(towers) > 1 or table else None
        tests: list[RangeTest] = []
        for name in towers or [ALL]:
            if tests and snapshot is not None:
                snapshot.restore(run)
            tests.append(range_test(run, name, limits))
        rows: list[Rate] = []
        if table and snapshot is not None:
            rows = train_at_each(
                run, config, table, snapshot, main_tower(run), steps=table_steps, test_split=test_split
            )
        run.engine.together(lambda: show(run, folder, tests, rows, as_json=as_json))


def check_limits(limits: Limits) -> None:
    if not 0 < limits.first < limits.last < math.inf:
        raise UserError(
            f"--from {limits.first:g} --to {limits.last:g}: the test rises from one to the other, so both must be above 0 "
            "and the second one larger."
        )
    if limits.steps < MIN_STEPS:
        raise UserError(f"--steps: found {limits.steps}; a curve needs at least {MIN_STEPS}.")


def as_test(config: RunConfig, steps: int) -> RunConfig:
    """The configuration with a length of so many steps, one phase, and nothing that would end it before."""
    return config.model_copy(
        update={
            "max_steps": steps,
            "num_epochs": None,
            "max_hours": None,
            "phases": [],
            "schedule": ScheduleSection(name="constant"),
        }
    )


def main_tower(run: Run) -> str:
    """The tower with the highest rate: the one whose rates name a curve of all towers."""
    return max(run.config.optimizer.towers, key=lambda tower: tower.lr).name


def range_test(run: Run, what: str, limits: Limits) -> RangeTest:
    """Takes one step at each rate, until the loss has exploded."""
    tower = main_tower(run) if what == ALL else what
    configured = max(group["base_lr"] for group in run.engine.optimizer.param_groups if group["tower"] == tower)
    rates = exponential_rates(limits.first, limits.last, limits.steps)
    losses: list[float] = []

    def scale(group_tower: str) -> float:
        rests = what != ALL and group_tower != tower
        return 0.0 if rests else rates[len(losses)] / configured

    def seen(step: StepLosses) -> bool:
        losses.append(float(sum(step.losses.values())))
        return has_diverged(losses, len(rates))

    take_steps(run, f"range test, {what}", limits.steps, scale, seen)
    return RangeTest(what, tower, rates, losses, configured, read_curve(rates, losses))


def show(run: Run, folder: Path, tests: list[RangeTest], rows: list[Rate], *, as_json: bool) -> None:
    """Prints what was found, and leaves it in the folder as JSON, a page and a picture."""
    if not run.engine.is_main:
        return
    found = {
        "tests": [
            {"what": t.what, "tower": t.tower, "rates": t.tried, "losses": t.losses, **asdict(t.reading)} for t in tests
        ],
        "table": [asdict(row) for row in rows],
    }
    text = json.dumps(found, indent=1)
    with uninterrupted():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "find_lr.json").write_text(text + "\n", encoding="utf-8")
        write_page(folder / "find_lr.html", tests, rows)
        picture = write_picture(folder / "find_lr.png", tests)
    if as_json:
        print(text)
        return
    console = Console(highlight=False)
    console.print(_summary(tests))
    for test in tests:
        console.print(f"{test.what}: {test.reading.reason}", soft_wrap=True, markup=False)
    if rows:
        console.print(rate_table(rows))
    written = f"{folder}/find_lr.html, .json" + (" and .png" if picture else "")
    console.print(f"written: {written}", soft_wrap=True, markup=False)
    if not picture:
        console.print("no picture: matplotlib is not installed (pip install 'accel_train[plot]').", markup=False)


def _summary(tests: list[RangeTest]) -> Table:
    table = Table(title="Learning rate range test", title_justify="left", title_style="bold")
    table.add_column("curve")
    for column in ("configured", "steepest", "turns", "diverges", "suggested"):
        table.add_column(column, justify="right", overflow="fold")
    for test in tests:
        reading = test.reading
        rates = (test.configured, reading.steepest, reading.turn, reading.diverged, reading.suggestion)
        name = f"{test.what} (rate of {test.tower})" if test.what == ALL else f"{test.what} alone"
        table.add_row(name, *("-" if rate is None else f"{rate:.2g}" for rate in rates))
    return table
