"""The curves of one run as charts."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from accel_train.tools.page.chart import Chart, Line, Mark, chart
from accel_train.tools.page.page import folded
from accel_train.tools.report.metrics_file import Rows
from accel_train.tools.report.record import SKIPPED, Record

STEP = "step"
FEW_LINES = 40
"""So many log lines or fewer are not smoothed."""
HALF_LIFE = 0.01
"""Of the smoothing, as a share of the log lines."""
MOST_NAMED_MARKS = 5
GROUP_POINTS = 150
KNOWN = (
    "epoch",
    "grad_norm",
    "samples_per_second",
    "waiting_for_data",
    "memory_gib",
    "save_stall_seconds",
    "save_seconds",
)
"""Columns of the training split with a chart or a reading of their own."""
PLAIN_SCORES = "Scores"
LR, NORM, LOSS_TERM = "lr/", "grad_norm/", "loss/"


def losses_and_scores(record: Record) -> Markup:
    """What one looks at first: did the loss behave, do the scores rise."""
    loss, *terms = _losses(record)
    return side_by_side([loss, *_scores(record), *terms])


def _losses(record: Record) -> list[Chart]:
    """Training and validation loss, and the terms of the loss where there are several."""
    content = Chart(
        "Loss",
        STEP,
        [*smoothed_lines(record.train, "loss", "training"), *_line(record.valid, "loss", "validation", colour=1)],
        marks=marks(record),
        note=_smoothing_note(record.train, "loss"),
    )
    terms = [name for name in record.train.columns if name.startswith(LOSS_TERM)]
    more = []
    if len(terms) > 1:
        lines = [line for name in terms for line in _line(record.train, name, name.removeprefix(LOSS_TERM))]
        more.append(Chart("Loss by term", STEP, lines))
    return [content, *more]


def _scores(record: Record) -> list[Chart]:
    """Scores of the validation split, those of one subject in one chart."""
    found = []
    for subject, names in subjects([name for name in record.valid.columns if name != "loss"]).items():
        lines = [line for name in names for line in _line(record.valid, name, _short_name(name, subject))]
        best = record.best
        is_past = best is not None and record.best_score in names and best[0] != record.valid.steps[-1]
        best_marks = [Mark(best[0], "best")] if best is not None and is_past else []
        title = names[0].replace("_", " ") if len(names) == 1 else subject
        found.append(Chart(title.capitalize(), STEP, lines, percent=is_share(record.valid, names), marks=best_marks))
    return found


def subjects(names: Sequence[str]) -> dict[str, list[str]]:
    """Score names by what they are of: `text_to_image_recall@5` is of text to image, `srocc_quality` of quality."""
    ends = Counter(name.partition("_")[2] for name in names)
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        subject, at, _ = name.partition("_recall@")
        is_mean = name.endswith("_mean_recall")
        end = name.partition("_")[2]
        plain = end if end and ends[end] > 1 else PLAIN_SCORES
        subject = subject if at else name.removesuffix("_mean_recall") if is_mean else plain
        found[subject.replace("_", " ")].append(name)
    return found


def rates(record: Record) -> Markup:
    """Learning rate and gradient norm by tower, and by group where a tower has several."""
    towers = groups_by_tower(record)
    clip = record.settings.config.optimizer.max_grad_norm if record.settings.config else None
    norm_note = f"Before clipping; all groups together are clipped to {clip:g}." if clip else "Before clipping."
    whole = _line(record.train, "grad_norm", "all") if len(towers) > 1 else []
    overview = side_by_side(
        [
            Chart("Learning rate", STEP, _rates(record.train, towers)),
            Chart(
                "Gradient norm",
                STEP,
                [*(line for name, own in towers.items() for line in _norm(record.train, name, own)), *whole],
                log_y=True,
                marks=marks(record),
                note=norm_note,
            ),
        ]
    )
    each = [
        Chart(
            f"{'Learning rate' if prefix == LR else 'Gradient norm'}: {tower}",
            STEP,
            [line for name in own for line in _line(record.train, prefix + name, name)],
            log_y=prefix == NORM or len(own) > 2,
            most_points=GROUP_POINTS,
        )
        for tower, own in towers.items()
        if len(own) > 1
        for prefix in (LR, NORM)
    ]
    return overview + (folded("Each group", side_by_side(each)) if each else Markup(""))


def groups_by_tower(record: Record) -> dict[str, list[str]]:
    """Names of the groups that metrics are of; without groups.json, what comes before the first dot is the tower."""
    tower_of = {group["name"]: group["tower"] for phase in record.groups for group in phase["groups"]}
    found: dict[str, list[str]] = defaultdict(list)
    for name in record.train.columns:
        if name.startswith(LR):
            group = name.removeprefix(LR)
            found[tower_of.get(group, group.partition(".")[0])].append(group)
    return found


def speed(record: Record) -> Markup:
    """Throughput, waiting for data, and the loss scale of fp16."""
    train = record.train
    charts = [
        Chart("Samples per second, all ranks", STEP, _line(train, "samples_per_second", "samples per second")),
        Chart("Waiting for data", STEP, _line(train, "waiting_for_data", "share of the time"), percent=True),
    ]
    if "loss_scale" in train.columns:
        charts.append(Chart("Loss scale of fp16", STEP, _line(train, "loss_scale", "loss scale"), log_y=True))
    return side_by_side(charts)


def others(record: Record) -> Markup:
    """What the task logs beside its losses, such as the temperature: names with one prefix in one chart."""
    train = record.train
    names = [
        name
        for name in train.columns
        if name not in KNOWN and name not in ("loss", "loss_scale") and not name.startswith((LR, NORM, LOSS_TERM))
    ]
    by_prefix: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_prefix[name.partition("/")[0]].append(name)
    charts = []
    for prefix, own in by_prefix.items():
        lines = [line for name in own for line in _line(train, name, name.removeprefix(f"{prefix}/"))]
        title = prefix.replace("_", " ").capitalize()
        charts.append(Chart(title, STEP, lines, percent="accuracy" in prefix and is_share(train, own)))
    return side_by_side(charts)


def side_by_side(charts: Sequence[Chart]) -> Markup:
    drawn = Markup("").join(chart(content) for content in charts if any(len(line.x) for line in content.lines))
    return Markup('<div class="grid-of-charts">{}</div>').format(drawn) if drawn else Markup("")


def is_share(rows: Rows, names: Sequence[str]) -> bool:
    """Whether all values lie between -1 and 1, as recall, accuracy and correlations do, which are read in percent."""
    values = np.concatenate([rows.given(name)[1] for name in names] or [np.zeros(0)])
    return bool(len(values)) and bool((np.abs(values) <= 1).all())


def marks(record: Record) -> list[Mark]:
    """Skipped steps, rollbacks, resumes and phases as upright lines; few of them have words."""
    told = record.story.of_kind("resumed", "rolled back", "phase", "stopped")
    places: list[tuple[int, str]] = [(event.step, event.kind) for event in told if event.step is not None]
    places += [(int(step), "skipped") for step in record.metrics.split(SKIPPED).steps.tolist()]
    unique = sorted(set(places))
    seen: dict[str, int] = defaultdict(int)
    found = []
    for step, kind in unique:
        seen[kind] += 1
        is_named = len(unique) <= MOST_NAMED_MARKS or seen[kind] == 1
        count = sum(other == kind for _, other in unique)
        text = kind if len(unique) <= MOST_NAMED_MARKS or count == 1 else f"{kind}, {count} times"
        found.append(Mark(step, text if is_named else ""))
    return found


def smoothed_lines(rows: Rows, column: str, name: str, colour: int = 0) -> list[Line]:
    """Many values: pale, with their moving average before them."""
    steps, values = rows.given(column)
    if len(values) <= FEW_LINES:
        return [Line(name, steps.tolist(), values.tolist(), colour=colour)] if len(values) else []
    smooth = smoothed(values)
    return [
        Line(f"{name}, each", steps.tolist(), values.tolist(), faint=True, colour=colour),
        Line(name, steps.tolist(), smooth.tolist(), colour=colour),
    ]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential moving average, without a bias towards 0 at its beginning; infinite values are left out of it."""
    keep = 0.5 ** (1 / max(1.0, HALF_LIFE * len(values)))
    found = np.empty(len(values))
    total = weight = 0.0
    for index, value in enumerate(values.tolist()):
        if value - value == 0:
            total, weight = keep * total + value, keep * weight + 1
        found[index] = total / weight if weight else np.nan
    return found


def _smoothing_note(rows: Rows, column: str) -> str:
    count = len(rows.given(column)[1])
    if count <= FEW_LINES:
        return ""
    return f"Bold: moving average with a half-life of {max(1, round(HALF_LIFE * count)):,} log lines. Pale: each line."


def _line(rows: Rows, column: str, name: str, colour: int | None = None) -> list[Line]:
    steps, values = rows.given(column)
    return [Line(name, steps.tolist(), values.tolist(), colour=colour)] if len(values) else []


def _rates(rows: Rows, towers: Mapping[str, Sequence[str]]) -> list[Line]:
    """The highest rate of each tower, over a band down to its lowest. Towers with the same rates share a line."""
    found: dict[bytes, tuple[list[str], np.ndarray, np.ndarray, np.ndarray]] = {}
    for tower, groups in towers.items():
        columns = np.stack([rows.columns[LR + group] for group in groups])
        there = ~np.isnan(columns).all(0)
        high, low = np.nanmax(columns[:, there], 0), np.nanmin(columns[:, there], 0)
        name = tower if (high == low).all() else f"{tower}, {len(groups)} groups"
        key = there.tobytes() + high.tobytes() + low.tobytes()
        found.setdefault(key, ([], rows.steps[there], high, low))[0].append(name)
    lines = []
    for names, steps, high, low in found.values():
        is_band = bool((high != low).any())
        limits = (low.tolist(), high.tolist()) if is_band else (None, None)
        lines.append(Line(", ".join(names), steps.tolist(), high.tolist(), low=limits[0], high=limits[1]))
    return lines


def _norm(rows: Rows, tower: str, groups: Sequence[str]) -> list[Line]:
    """Of all groups of a tower together: the root of the sum of squares."""
    columns = np.stack([rows.columns.get(NORM + group, np.full(len(rows.steps), np.nan)) for group in groups])
    there = ~np.isnan(columns).all(0)
    norms = np.sqrt(np.nansum(np.square(columns[:, there]), 0))
    return [Line(tower, rows.steps[there].tolist(), norms.tolist())] if there.any() else []


def _short_name(name: str, subject: str) -> str:
    _, at, k = name.partition("_recall@")
    if at:
        return f"R@{k}"
    if name.endswith("mean_recall") and subject != PLAIN_SCORES:
        return "mean recall"
    return name.removesuffix(f"_{subject.replace(' ', '_')}")
