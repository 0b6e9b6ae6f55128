"""The page about several runs: results, curves over each other, and what differs in the configurations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from accel_train.config.load import ABSENT
from accel_train.tools.page.axis import percent, short
from accel_train.tools.page.chart import Chart, Line
from accel_train.tools.page.page import table
from accel_train.tools.report import curves, queries
from accel_train.tools.report.facts import facts_of, remarks
from accel_train.tools.report.metrics_file import Rows
from accel_train.tools.report.one_run import Section, duration, progress, written
from accel_train.tools.report.record import Record
from accel_train.tools.report.seeds import Estimate, Group, estimate, grouped
from accel_train.tools.report.settings import differences, shown

MOST_SCORES = 5


def name_apart(records: Sequence[Record]) -> None:
    """Runs of one folder name get as many of the folders above as tell them apart."""
    parts = [record.folder.resolve().parts for record in records]
    for record, own in zip(records, parts, strict=True):
        depth = 1
        while depth < len(own) and sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        record.name = "/".join(own[-depth:])


def sections(records: Sequence[Record]) -> list[Section]:
    groups = grouped(records)
    found = [
        ("Results", results(records, groups)),
        ("Curves", overlaid(groups)),
        ("Queries", queries.draw(records, judging_score(records))),
        ("What differs", differing(records)),
        ("Each run", each_run(records)),
    ]
    return [(heading, content) for heading, content in found if content]


def results(records: Sequence[Record], groups: Sequence[Group]) -> Markup:
    """A row for each run, ordered by its best score; and the means over seeds where there are several."""
    facts = {record.name: facts_of(record) for record in records}
    score = judging_score(records)
    order = sorted(facts.values(), key=lambda own: -(own.best_scores.get(score or "", -np.inf)))
    others = [name for name in _score_names(records) if name != score][: MOST_SCORES - 1]
    names = [score, *others] if score else []
    header = ["run", *names, "at step", "seed", "last loss", "samples/s", "waiting", "state"]
    rows = []
    for own in order:
        values = [written(name, own.best_scores.get(name)) for name in names]
        rows.append(
            [
                own.name,
                *values,
                "–" if own.best_step is None else f"{own.best_step:,}",
                "–" if own.seed is None else str(own.seed),
                "–" if own.last_loss is None else short(own.last_loss),
                "–" if own.samples_per_second is None else short(own.samples_per_second),
                "–" if own.waiting_for_data is None else percent(own.waiting_for_data),
                progress(own),
            ]
        )
    caption = f"Scores of each run's best evaluation, judged by {score}" if score else "No run has been evaluated"
    return table(header, rows, caption=caption) + _means(groups, names)


def _means(groups: Sequence[Group], names: Sequence[str]) -> Markup:
    if not names or not any(group.has_seeds for group in groups):
        return Markup("")
    rows = []
    for group in groups:
        cells = [interval(name, group_estimate(group, name)) for name in names]
        rows.append([group.name, str(len(group.records)), *cells])
    note = (
        "Runs that differ only in seed are taken together. ± is the 95 % interval of the mean (Student's t); of two runs it "
        "is wide because two say little."
    )
    unfinished = [record.name for group in groups for record in group.records if record.status != "done"]
    if unfinished:
        note += f" Not at their end: {', '.join(unfinished)}."
    caption = "Mean of each run's best evaluation over seeds"
    return table(["runs", "seeds", *names], rows, caption=caption) + Markup('<p class="note">{}</p>').format(note)


def group_estimate(group: Group, name: str) -> Estimate | None:
    """Of a score at each run's best evaluation."""
    found = [facts_of(record).best_scores.get(name) for record in group.records]
    return estimate([value for value in found if value is not None])


def interval(name: str, found: Estimate | None) -> str:
    if found is None:
        return "–"
    if found.half_width is None:
        return written(name, found.mean)
    if name == "loss" or not -1 <= found.mean <= 1:
        return f"{short(found.mean)}\u00a0±\u00a0{short(found.half_width)}"
    return f"{100 * found.mean:.2f}\u00a0±\u00a0{100 * found.half_width:.2f}\u00a0%"


def judging_score(records: Sequence[Record]) -> str | None:
    """The one of the first run that has one."""
    return next((record.best_score for record in records if record.best_score), None)


def overlaid(groups: Sequence[Group]) -> Markup:
    """Each group of runs in one colour; several seeds as their mean over a band from the lowest to the highest."""
    records = [record for group in groups for record in group.records]
    score = judging_score(records)
    charts = []
    if score is not None:
        lines = [
            _together(group, [_valid(record, score) for record in group.records], n) for n, group in enumerate(groups)
        ]
        percent_ = all(curves.is_share(record.valid, [score]) for record in records if score in record.valid.columns)
        charts.append(Chart(score.replace("_", " ").capitalize(), curves.STEP, _flat(lines), percent=percent_))
    charts.append(_chart(groups, "Training loss, smoothed", "loss", smooth=True))
    losses = [[_valid(record, "loss") for record in group.records] for group in groups]
    lines = [_together(group, found, n) for n, (group, found) in enumerate(zip(groups, losses, strict=True))]
    charts.append(Chart("Validation loss", curves.STEP, _flat(lines)))
    charts.append(_chart(groups, "Gradient norm, smoothed", "grad_norm", smooth=True, log_y=True))
    lines = [_together(group, [_highest_rate(record) for record in group.records], n) for n, group in enumerate(groups)]
    charts.append(Chart("Highest learning rate of a group", curves.STEP, _flat(lines)))
    charts.append(_chart(groups, "Samples per second", "samples_per_second"))
    note = (
        "Bands reach from the lowest to the highest seed; the line is their mean, as far as all of them have come."
        if len(groups) < len(records)
        else ""
    )
    return curves.side_by_side(charts) + (Markup('<p class="note">{}</p>').format(note) if note else "")


Curve = tuple[np.ndarray, np.ndarray]


def _chart(groups: Sequence[Group], title: str, column: str, *, smooth: bool = False, log_y: bool = False) -> Chart:
    lines = []
    for number, group in enumerate(groups):
        found = [record.train.given(column) for record in group.records]
        if smooth:
            found = [(steps, curves.smoothed(values)) for steps, values in found]
        lines.append(_together(group, found, number))
    return Chart(title, curves.STEP, _flat(lines), log_y=log_y)


def _valid(record: Record, score: str) -> Curve:
    return record.valid.given(score)


def _highest_rate(record: Record) -> Curve:
    rows: Rows = record.train
    columns = [values for name, values in rows.columns.items() if name.startswith(curves.LR)]
    if not columns:
        return np.zeros(0), np.zeros(0)
    there = ~np.isnan(np.stack(columns)).all(0)
    return rows.steps[there], np.nanmax(np.stack(columns)[:, there], 0)


def _together(group: Group, found: Sequence[Curve], colour: int) -> list[Line]:
    """One run's curve; or of several the mean over the steps that all of them have, over a band."""
    held = [curve for curve in found if len(curve[0])]
    if len(held) < 2:
        return [Line(group.name, steps.tolist(), values.tolist(), colour=colour) for steps, values in held]
    steps = held[0][0]
    for own, _ in held[1:]:
        steps = np.intersect1d(steps, own)
    if not len(steps):  # they log at other steps: each on its own
        return [
            Line(f"{group.name} ({number})", own.tolist(), values.tolist(), colour=colour)
            for number, (own, values) in enumerate(held, 1)
        ]
    values = np.stack([values[np.searchsorted(own, steps)] for own, values in held])
    low, high = values.min(0).tolist(), values.max(0).tolist()
    return [Line(group.name, steps.tolist(), values.mean(0).tolist(), colour=colour, low=low, high=high)]


def differing(records: Sequence[Record]) -> Markup:
    rows = [[key, *(_shown(value) for value in values)] for key, values in _differences(records)]
    if not rows:
        return Markup("<p>Nothing but run_dir: the configurations are the same.</p>")
    header = ["key", *(record.name for record in records)]
    return table(header, rows, caption="Keys that are not the same in all runs, run_dir aside", numbers=False)


def each_run(records: Sequence[Record]) -> Markup:
    """How each run went, with what is worth knowing of it."""
    rows = []
    for record in records:
        facts = facts_of(record)
        counts = (
            f"{facts.num_skipped} skipped, {facts.num_rollbacks} rollbacks, {max(0, facts.num_starts - 1)} restarts"
        )
        launch = record.launches[-1][1] if record.launches else {}
        engine = f"{launch.get('engine', '–')} on {launch.get('world_size', '–')} x {launch.get('device', '–')}"
        rows.append([record.name, progress(facts), duration(facts.seconds), counts, engine, " ".join(remarks(record))])
    header = ["run", "state", "time", "incidents", "engine", "worth knowing"]
    return table(header, rows, caption="`accel-train report RUN` has the rest of each run", numbers=False)


def as_json(records: Sequence[Record]) -> dict[str, Any]:
    groups = grouped(records)
    score = judging_score(records)
    names = [name for name in ([score] if score else []) + _score_names(records) if name]
    return {
        "score": score,
        "groups": [
            {
                "name": group.name,
                "runs": [record.name for record in group.records],
                "scores": {
                    name: {"mean": found.mean, "half_width_95": found.half_width, "count": found.count}
                    for name in dict.fromkeys(names)
                    if (found := group_estimate(group, name))
                },
            }
            for group in groups
        ],
        "queries": queries.as_json(records, score),
        "differences": [
            {"key": key, "values": dict(zip([record.name for record in records], values, strict=True))}
            for key, values in _differences(records)
        ],
    }


def _differences(records: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    return differences([record.settings.leaves for record in records])


def _score_names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.valid.columns if name != "loss"))


def _shown(value: Any) -> str:
    return value if value == ABSENT else shown(value)


def _flat(lines: Sequence[list[Line]]) -> list[Line]:
    return [line for own in lines for line in own]
