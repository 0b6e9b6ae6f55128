"""Line charts for pages. The plot is an SVG that stretches with its place and all text is HTML: readable at any width."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from markupsafe import Markup

from accel_train.tools.page.axis import Axis, axis, short, spoken, ticks

NUM_COLOURS = 8
"""Colours of lines in page.css; the ninth line has the first one's, dashed."""
MOST_POINTS = 600
"""Points drawn of one line. Of longer ones every interval shows its lowest and its highest value, so spikes stay."""
MOST_ROWS = 8
"""Rows of words beside marks."""
MOST_END_LABELS = 6
"""Of more lines the names stand in a legend alone."""
END_LABEL_HEIGHT = 0.075
"""Of the height of a plot."""
MOST_TICKS = 5
SIZE = 1000
"""Side of the SVG's own coordinates."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values over x, which rises. A value that is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    """For raw values behind smoothed ones: drawn pale, without a name beside it."""
    colour: int | None = None
    """None: the next one."""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Limits of a band around the line."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line, perhaps with words: an incident, a suggestion."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    x_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[Mark] = field(default_factory=tuple)
    note: str = ""
    percent: bool = False
    """The values are shares of 1 and written in percent."""
    most_points: int = MOST_POINTS


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart's thinned lines with their colours, and where its values are placed."""

    lines: Sequence[Line]
    colours: Sequence[int]
    across: Axis
    up: Axis


def chart(content: Chart) -> Markup:
    """A figure with title, plot, ticks, and the lines' names at their ends and in a legend."""
    lines = [_thinned(line, content.most_points) for line in content.lines]
    drawing = Drawing(
        lines,
        _colours(lines),
        axis(
            [*(line.x for line in lines), [mark.x for mark in content.marks]],
            log=content.log_x,
            tight=not content.log_x,
        ),
        axis([values for line in lines for values in (line.y, line.low or (), line.high or ())], log=content.log_y),
    )
    labels = _end_labels(drawing)
    return Markup(
        '<figure class="chart{labelled}"><figcaption>{title}</figcaption>'
        '<div class="plot" tabindex="0" role="img" aria-label="{words}" data-lines="{data}">'
        '<svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" aria-hidden="true">{grid}{drawn}{marks}</svg>'
        '{ticks}{labels}{mark_texts}<i class="cursor"></i></div>'
        '<div class="below"><div class="x-label">{x_label}</div><output class="reading"></output></div>'
        "{legend}{note}</figure>"
    ).format(
        labelled=" labelled" if labels else "",
        title=content.title,
        words=in_words(content),
        data=json.dumps(_data(drawing, content), separators=(",", ":")),
        size=SIZE,
        grid=grid(drawing.across, drawing.up),
        drawn=Markup("").join(
            _drawn(line, kind(colour, line.faint), drawing) for line, colour in zip(lines, drawing.colours, strict=True)
        ),
        marks=Markup("").join(_mark(mark, drawing.across) for mark in content.marks),
        mark_texts=_mark_texts(content.marks, drawing.across),
        ticks=tick_texts(drawing.across, drawing.up, percent=content.percent),
        labels=labels,
        x_label=content.x_label,
        legend=_legend(drawing),
        note=Markup("<p class='note'>{}</p>").format(content.note) if content.note else "",
    )


def in_words(content: Chart) -> str:
    """For who can't see it: each line's first, last and extreme values."""
    said = []
    for line in content.lines:
        held = np.asarray(line.y, float)
        held = held[np.isfinite(held)]
        if len(held) and not line.faint:
            first, last, low, high = (
                spoken(float(value), as_percent=content.percent)
                for value in (held[0], held[-1], held.min(), held.max())
            )
            said.append(f"{line.name} from {first} to {last}, between {low} and {high}")
    said += [f"{mark.text} at {short(mark.x)}" for mark in content.marks if mark.text]
    return f"{content.title} over {content.x_label}: " + ("; ".join(said) or "no values yet")


def thinned_rows(values: Sequence[float], most: int) -> np.ndarray:
    """Which of many values are drawn: of each of most / 2 equal intervals the lowest and the highest, and both ends."""
    column = np.asarray(values, float)
    if len(column) <= most:
        return np.arange(len(column))
    edges = np.linspace(0, len(column), most // 2 + 1).astype(int)
    finite = np.isfinite(column)
    lows, highs = np.where(finite, column, np.inf), np.where(finite, column, -np.inf)
    kept = [0, len(column) - 1]
    for start, end in itertools.pairwise(edges.tolist()):
        kept += [start + int(lows[start:end].argmin()), start + int(highs[start:end].argmax())]
    return np.unique(kept)


def kind(colour: int, faint: bool = False) -> str:
    """The classes of a line's colour."""
    return f"c{colour % NUM_COLOURS}{' dashed' if colour >= NUM_COLOURS else ''}{' faint' if faint else ''}"


def grid(across: Axis, up: Axis) -> Markup:
    level = Markup("").join(
        Markup('<path class="grid" d="M0 {0:.1f}H{1}"/>').format(SIZE * (1 - up.place(value)), SIZE)
        for value in ticks(up, MOST_TICKS)
    )
    upright = Markup("").join(
        Markup('<path class="grid" d="M{0:.1f} 0V{1}"/>').format(SIZE * across.place(value), SIZE)
        for value in ticks(across, MOST_TICKS)
    )
    return level + upright


def tick_texts(across: Axis, up: Axis, *, percent: bool = False) -> Markup:
    left = Markup("").join(
        Markup('<span class="tick y" style="bottom:{:.2f}%">{}</span>').format(
            100 * up.place(value), spoken(value, as_percent=percent).replace(".0\u00a0", "\u00a0")
        )
        for value in ticks(up, MOST_TICKS)
    )
    below = Markup("").join(
        Markup('<span class="tick x" style="left:{:.2f}%">{}</span>').format(100 * across.place(value), short(value))
        for value in ticks(across, MOST_TICKS)
    )
    return left + below


def point(x: float, y: float, across: Axis, up: Axis) -> str:
    return f"{SIZE * across.place(x):.1f} {SIZE * (1 - up.place(y)):.1f}"


def _thinned(line: Line, most_points: int) -> Line:
    if len(line.x) <= most_points:
        return line
    rows = thinned_rows(line.y, most_points)

    def of(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else np.asarray(values)[rows].tolist()

    return replace(line, x=of(line.x) or [], y=of(line.y) or [], low=of(line.low), high=of(line.high))


def _colours(lines: Sequence[Line]) -> list[int]:
    taken = 0
    found = []
    for line in lines:
        found.append(taken if line.colour is None else line.colour)
        taken += line.colour is None
    return found


def _drawn(line: Line, classes: str, drawing: Drawing) -> Markup:
    across, up = drawing.across, drawing.up
    parts = Markup("")
    if line.low is not None and line.high is not None:
        there = [point(x, y, across, up) for x, y in zip(line.x, line.high, strict=True) if up.shows(y)]
        back = [point(x, y, across, up) for x, y in zip(line.x, line.low, strict=True) if up.shows(y)]
        if there and back:
            parts += Markup('<path class="band {}" d="M{}Z"/>').format(classes, "L".join([*there, *reversed(back)]))
    for piece in _pieces(line, across, up):
        if len(piece) == 1:  # a line of one point would not be seen
            parts += Markup('<path class="line dot {}" d="M{}h0.01"/>').format(classes, piece[0])
        else:
            parts += Markup('<path class="line {}" d="M{}"/>').format(classes, "L".join(piece))
    return Markup('<g data-line="{}">{}</g>').format(line.name, parts)


def _pieces(line: Line, across: Axis, up: Axis) -> list[list[str]]:
    pieces: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if across.shows(x) and up.shows(y):
            pieces[-1].append(point(x, y, across, up))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _mark(mark: Mark, across: Axis) -> Markup:
    return Markup('<path class="mark" d="M{0:.1f} 0V{1}"/>').format(SIZE * across.place(mark.x), SIZE)


def _mark_texts(marks: Sequence[Mark], across: Axis) -> Markup:
    """Each below the one before it, so that neighbours don't cover each other."""
    texts = Markup("")
    for row, mark in enumerate(mark for mark in marks if mark.text):
        place = 100 * across.place(mark.x)
        side = "right" if place > 60 else "left"
        texts += Markup('<span class="mark-text" style="{}:{:.2f}%;top:{:.1f}rem">{}</span>').format(
            side, 100 - place if side == "right" else place, 0.2 + 1.3 * (row % MOST_ROWS), mark.text
        )
    return texts


def _end_labels(drawing: Drawing) -> Markup:
    """The lines' names where they end, moved apart where they would cover each other. Nothing for one line or too many."""
    ends: list[tuple[float, str, int]] = []
    for line, colour in _named(drawing):
        shown = [y for x, y in zip(line.x, line.y, strict=True) if drawing.up.shows(y) and drawing.across.shows(x)]
        if shown:
            ends.append((drawing.up.place(shown[-1]), line.name, colour))
    if not 2 <= len(ends) <= MOST_END_LABELS:
        return Markup("")
    ends.sort(key=lambda end: end[0])
    places: list[float] = []
    for place, _, _ in ends:
        places.append(max(place, places[-1] + END_LABEL_HEIGHT) if places else place)
    last = len(places) - 1
    places = [min(place, 1 - (last - index) * END_LABEL_HEIGHT) for index, place in enumerate(places)]
    return Markup("").join(
        Markup('<span class="end-label c{}" style="bottom:{:.2f}%" title="{}" aria-hidden="true">{}</span>').format(
            colour % NUM_COLOURS, 100 * place, name, name
        )
        for place, (_, name, colour) in zip(places, ends, strict=True)
    )


def _named(drawing: Drawing) -> list[tuple[Line, int]]:
    pairs = zip(drawing.lines, drawing.colours, strict=True)
    return [(line, colour) for line, colour in pairs if not line.faint]


def _legend(drawing: Drawing) -> Markup:
    named = _named(drawing)
    if len(named) < 2:
        return Markup("")
    entries = Markup("").join(
        Markup('<label class="c{}{}"><input type="checkbox" checked data-shows="{}"><b></b>{}</label>').format(
            colour % NUM_COLOURS, " dashed" if colour >= NUM_COLOURS else "", line.name, line.name
        )
        for line, colour in named
    )
    return Markup('<fieldset class="legend"><legend>Lines shown</legend>{}</fieldset>').format(entries)


def _data(drawing: Drawing, content: Chart) -> dict[str, object]:
    """What the reading under the cursor is taken from: the axis, and each line's x and the texts of its values."""
    across = drawing.across
    lines = []
    for line, _ in _named(drawing):
        shown = [(x, y) for x, y in zip(line.x, line.y, strict=True) if across.shows(x) and not math.isnan(y)]
        xs = [int(x) if float(x).is_integer() else float(f"{x:.6g}") for x, _ in shown]
        texts = [spoken(float(y), as_percent=content.percent) for _, y in shown]
        lines.append({"name": line.name, "xs": xs, "texts": texts})
    return {"x": content.x_label, "axis": [across.low, across.high, across.log], "lines": lines}
