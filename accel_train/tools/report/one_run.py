"""The sections of the page about one run, what one looks for first at the top."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from accel_train.tools.page.axis import percent, short
from accel_train.tools.page.page import folded, table, tiles
from accel_train.tools.report import curves
from accel_train.tools.report.facts import Facts, facts_of, remarks
from accel_train.tools.report.predictions import predictions
from accel_train.tools.report.record import Record
from accel_train.tools.report.run_story import INCIDENTS
from accel_train.tools.report.settings import NO_DEFAULT, rows_of, shown

Section = tuple[str, Markup]
MOST_INCIDENTS = 200
STATUS = {
    "running": "running",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "silent": "ended without a word",
}


def sections(record: Record) -> list[Section]:
    """Heading and content of each part; parts without content are left out."""
    found = [
        ("At a glance", at_a_glance(record)),
        ("Loss and scores", curves.losses_and_scores(record) + score_table(record)),
        ("Predictions", predictions(record)),
        ("Rates and gradients", curves.rates(record) + group_tables(record)),
        ("Speed", curves.speed(record) + speed_tiles(record)),
        ("More of the task", curves.others(record)),
        ("Incidents", incidents(record)),
        ("Configuration", configuration(record)),
        ("Environment", environment(record)),
    ]
    return [(heading, content) for heading, content in found if content]


def subtitle(record: Record) -> str:
    facts = facts_of(record)
    return f"{facts.task.replace('_', ' ')} · {progress(facts)} · {facts.folder}"


def progress(facts: Facts) -> str:
    """How far a run is, and whether it goes on."""
    of = f" of {facts.total_steps:,}" if facts.total_steps else ""
    taken = "" if facts.step == facts.total_steps and facts.status == "done" else f" at step {facts.step:,}{of}"
    all_of = f", all {facts.step:,} steps" if not taken else ""
    return f"{STATUS[facts.status]}{taken}{all_of}"


def in_a_line(record: Record) -> str:
    """For the terminal."""
    facts = facts_of(record)
    best = "" if facts.best_step is None else f", {facts.score} {written(facts.score, facts.best_value)}"
    return f"{record.name} ({progress(facts)}{best})"


def at_a_glance(record: Record) -> Markup:
    facts = facts_of(record)
    loss = "" if facts.first_loss is None else f"from {short(facts.first_loss)}"
    readings = [
        ("Status", STATUS[facts.status], _step_words(facts)),
        (_score_name(facts.score), written(facts.score, facts.best_value), _best_words(facts)),
        ("Training loss", _or_none(facts.last_loss), loss),
        ("Waiting for data", "–" if facts.waiting_for_data is None else percent(facts.waiting_for_data), "of the time"),
        ("Samples per second", _or_none(facts.samples_per_second), "median, all ranks"),
        ("Time", duration(facts.seconds), _time_words(facts)),
        (
            "Skipped steps",
            f"{facts.num_skipped:,}",
            f"{facts.num_rollbacks} rollbacks, {facts.num_starts - 1} restarts",
        ),
    ]
    if facts.score is None:
        readings.pop(1)
    found = tiles(readings)
    if facts.status in ("failed", "stopped", "silent"):
        found += Markup('<p class="verdict wrong">{}</p>').format(_ending_words(facts))
    said = remarks(record)
    if said:
        items = Markup("").join(Markup("<li>{}</li>").format(line) for line in said)
        found += Markup('<h3>Worth knowing</h3><ul class="remarks">{}</ul>').format(items)
    return found


def score_table(record: Record) -> Markup:
    """The best evaluation beside the last and the first one."""
    facts = facts_of(record)
    if not facts.best_scores or len(record.valid.steps) < 2:
        return Markup("")
    first, last = int(record.valid.steps[0]), int(record.valid.steps[-1])
    columns = {f"best, step {facts.best_step:,}": facts.best_scores, f"last, step {last:,}": facts.last_scores}
    columns[f"first, step {first:,}"] = record.scores_at(first)
    rows = [
        [name, *(written(name, own.get(name)) for own in columns.values())]
        for name in dict.fromkeys(name for own in columns.values() for name in own)
    ]
    caption = f"Scores on {record.valid_split}; {facts.score} decides which evaluation is best"
    return table(["score", *columns], rows, caption=caption)


def group_tables(record: Record) -> Markup:
    """The groups of each phase: what was planned, and the gradients that were measured."""
    parts = Markup("")
    for index, phase in enumerate(record.groups):
        ends = [later["start"] for later in record.groups[index + 1 : index + 2]]
        caption = "Parameter groups"
        if len(record.groups) > 1:
            caption += f" of the phase {phase.get('phase')}, from step {phase['start']:,}"
        parts += table(GROUP_HEADER, _group_rows(record, phase, ends[0] if ends else None), caption=caption)
    return parts


GROUP_HEADER = (
    "group",
    "layers",
    "tensors",
    "parameters",
    "share",
    "base lr",
    "last lr",
    "decay",
    "clip",
    "gradient norm, median",
    "largest",
)


def _group_rows(record: Record, phase: dict[str, Any], end: int | None) -> list[list[str]]:
    total = sum(part["num_parameters"] for part in (*phase["groups"], *phase["frozen"])) or 1
    rows = []
    for group in phase["groups"]:
        norms = _within(record, f"{curves.NORM}{group['name']}", phase["start"], end)
        rate = _within(record, f"{curves.LR}{group['name']}", phase["start"], end)
        first, last = group["layer"] - group["num_layers"] + 1, group["layer"]
        rows.append(
            [
                group["name"],
                str(last) if first == last else f"{first}–{last}",
                f"{group['num_tensors']:,}",
                f"{group['num_parameters']:,}",
                percent(group["num_parameters"] / total),
                short(group["lr"]),
                short(rate[-1]) if len(rate) else "–",
                f"{group['weight_decay']:g}",
                "" if group["max_grad_norm"] is None else f"{group['max_grad_norm']:g}",
                short(float(np.median(norms))) if len(norms) else "–",
                short(float(norms.max())) if len(norms) else "–",
            ]
        )
    for part in phase["frozen"]:
        share = percent(part["num_parameters"] / total)
        sizes = [f"{part['num_tensors']:,}", f"{part['num_parameters']:,}", share]
        rows.append([part["tower"] or "(no tower)", "", *sizes, "frozen", "", "", "", "", ""])
    return rows


def _within(record: Record, column: str, start: int, end: int | None) -> np.ndarray:
    steps, values = record.train.given(column)
    return values[(steps > start) & (steps <= (math.inf if end is None else end))]


def speed_tiles(record: Record) -> Markup:
    facts = facts_of(record)
    readings = [("Peak memory of a rank", "–" if facts.memory_gib is None else f"{facts.memory_gib:.2f} GiB", "")]
    _, stalls = record.train.given("save_stall_seconds")
    _, saves = record.train.given("save_seconds")
    if len(saves):
        stood = f"training stood still for {stalls.sum():.1f} s in all" if len(stalls) else ""
        readings.append(("A checkpoint takes", f"{np.median(saves):.2f} s", f"{len(saves)} were timed; {stood}"))
    return tiles(readings)


def incidents(record: Record) -> Markup:
    """What happened on the way, in order."""
    listed = record.story.of_kind(*INCIDENTS)
    if not listed:
        return Markup("<p>None: no skipped step, no rollback, no restart, no warning.</p>")
    rows = [
        [f"{event.when:%Y-%m-%d %H:%M:%S}", event.kind, "" if event.step is None else f"{event.step:,}", event.text]
        for event in listed
    ]
    head, rest = rows[:MOST_INCIDENTS], len(rows) - MOST_INCIDENTS
    caption = f"From run.log{f'; {rest:,} later ones are left out' if rest > 0 else ''}"
    return table(["when", "what", "step", "in full"], head, caption=caption, numbers=False)


def configuration(record: Record) -> Markup:
    config = record.settings.config
    if config is None:
        rows = [[key, shown(value)] for key, value in record.settings.leaves.items()]
        return table(["key", "value"], rows, caption="config.yaml; defaults can't be told", numbers=False)
    every = rows_of(config)
    changed = [[row.key, shown(row.value), _default(row.default)] for row in every if not row.is_default]
    header = ["key", "value", "default"]
    found = table(header, changed, caption="What differs from the defaults, or has none", numbers=False)
    kept = [[row.key, shown(row.value)] for row in every if row.is_default]
    return found + folded(
        f"{len(kept)} keys with their default value", table(["key", "value"], kept, caption="Defaults", numbers=False)
    )


def environment(record: Record) -> Markup:
    """What computed the steps; one column for each change of it."""
    if not record.launches:
        return Markup("")
    columns = [_flat(launch) for _, launch in record.launches]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [[key, *(shown(column.get(key)) for column in columns)] for key in keys]
    header = ["", *("from the start" if step == 0 else f"from step {step:,}" for step, _ in record.launches)]
    return table(header, rows, caption="What computed the steps", numbers=False)


def _flat(launch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in launch.items():
        found |= {f"{key}.{inner}": leaf for inner, leaf in value.items()} if isinstance(value, dict) else {key: value}
    return found


def written(name: str | None, value: float | None) -> str:
    """A score: recall, accuracy and the like in percent, a loss as it is."""
    if value is None or math.isnan(value):
        return "–"
    return short(value) if name == "loss" or not -1 <= value <= 1 else f"{100 * value:.2f}\u00a0%"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _default(value: Any) -> str:
    return "" if value == NO_DEFAULT else shown(value)


def _or_none(value: float | None) -> str:
    return "–" if value is None else short(value)


def _score_name(score: str | None) -> str:
    return (score or "").replace("_", " ").capitalize()


def _step_words(facts: Facts) -> str:
    of = f" of {facts.total_steps:,}" if facts.total_steps else ""
    return f"step {facts.step:,}{of}"


def _best_words(facts: Facts) -> str:
    return "not evaluated yet" if facts.best_step is None else f"best, at step {facts.best_step:,}"


def _time_words(facts: Facts) -> str:
    return "" if facts.seconds_left is None else f"{duration(facts.seconds_left)} left"


def _ending_words(facts: Facts) -> str:
    if facts.ending:
        return facts.ending.partition(": ")[2] or facts.ending
    return "The run is not at its end and no process trains in its folder: it was killed, or it crashed."
