"""Line charts for pages. The plot is an SVG that stretches with its place and all text is HTML: readable at any width."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

NUM_COLOURS = 8
"""Colours of lines in page.css; the ninth line has the first one's, dashed."""
MOST_POINTS = 600
"""Points drawn of one line. Of longer ones every interval shows its lowest and its highest value, so spikes stay."""
MOST_ROWS = 8
"""Rows of words beside marks."""
SIZE = 1000
"""Side of the SVG's own coordinates."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values over x, which rises. A value that is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    """For raw values behind smoothed ones: drawn pale, without an entry in the legend."""
    colour: int | None = None
    """None: the next one."""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    """Limits of a band around the line."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with words: an incident, a suggestion."""

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


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to 0 .. 1."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        return ((math.log10(value) if self.log else value) - low) / (high - low)

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)


def chart(content: Chart) -> Markup:
    """A figure with title, plot, ticks and legend."""
    lines = [_thinned(line) for line in content.lines]
    across = axis([x for line in lines for x in line.x], log=content.log_x)
    limits = [value for line in lines for values in (line.y, line.low or (), line.high or ()) for value in values]
    up = axis(limits, log=content.log_y)
    colours = _colours(lines)
    drawn = Markup("").join(_drawn(line, colour, across, up) for line, colour in zip(lines, colours, strict=True))
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<div class="plot" tabindex="0" role="img" aria-label="{words}" data-lines="{data}">'
        '<svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" aria-hidden="true">{grid}{drawn}{marks}</svg>'
        '{ticks}{mark_texts}<i class="cursor"></i></div>'
        '<div class="x-label">{x_label}</div><output class="reading"></output>{legend}{note}</figure>'
    ).format(
        title=content.title,
        words=in_words(content),
        data=json.dumps(_data(lines, across, content)),
        size=SIZE,
        grid=_grid(across, up),
        drawn=drawn,
        marks=Markup("").join(_mark(mark, across) for mark in content.marks),
        mark_texts=Markup("").join(_mark_text(mark, row, across) for row, mark in enumerate(content.marks)),
        ticks=_tick_texts(across, up),
        x_label=content.x_label,
        legend=_legend(lines, colours),
        note=Markup("<p class='note'>{}</p>").format(content.note) if content.note else "",
    )


def axis(values: Sequence[float], *, log: bool) -> Axis:
    """Limits that hold all finite values (on a logarithmic axis all positive ones) with a little room."""
    held = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not held:
        return Axis(0.1 if log else 0.0, 1.0, log)
    low, high = min(held), max(held)
    if log:
        return Axis(low / 1.1, high * 1.1, log)
    room = 0.04 * (high - low) or abs(high) or 1.0
    return Axis(low - room if low < 0 or low > 3 * room else 0.0, high + room, log)


def ticks(along: Axis, most: int = 6) -> list[float]:
    """Round values within an axis, at most `most` of them."""
    if along.log:
        decades = range(math.floor(math.log10(along.low)), math.ceil(math.log10(along.high)) + 1)
        for leading in ((1, 2, 5), (1, 3), (1,)):
            found = [digit * 10.0**decade for decade in decades for digit in leading]
            found = [value for value in found if along.low <= value <= along.high]
            if 2 <= len(found) <= most:
                return found
        if len(found) > most:
            return found[:: -(-len(found) // most)]
    span = along.high - along.low
    rough = span / most
    unit = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first_multiple = math.ceil(along.low / width - 1e-9)
    found = [round(number * width, 12) for number in range(first_multiple, math.floor(along.high / width + 1e-9) + 1)]
    return [value for value in found if not along.log or value > 0]


def in_words(content: Chart) -> str:
    """For who can't see it: each line's first, last and extreme values."""
    said = []
    for line in content.lines:
        held = [value for value in line.y if math.isfinite(value)]
        if held and not line.faint:
            said.append(
                f"{line.name} from {short(held[0])} to {short(held[-1])}, between {short(min(held))} and {short(max(held))}"
            )
    said += [f"{mark.text} at {short(mark.x)}" for mark in content.marks]
    return f"{content.title} over {content.x_label}: " + ("; ".join(said) or "no values yet")


def short(value: float) -> str:
    """A number for a tick or a reading."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _thinned(line: Line) -> Line:
    count = len(line.x)
    if count <= MOST_POINTS:
        return line
    edges = [count * part // (MOST_POINTS // 2) for part in range(MOST_POINTS // 2 + 1)]
    kept = {0, count - 1}
    for start, end in itertools.pairwise(edges):
        finite = [index for index in range(start, end) if math.isfinite(line.y[index])] or [start]
        kept |= {min(finite, key=lambda i: line.y[i]), max(finite, key=lambda i: line.y[i])}
    rows = sorted(kept)

    def of(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [values[row] for row in rows]

    return Line(line.name, of(line.x) or [], of(line.y) or [], line.faint, line.colour, of(line.low), of(line.high))


def _colours(lines: Sequence[Line]) -> list[int]:
    taken = 0
    found = []
    for line in lines:
        found.append(taken if line.colour is None else line.colour)
        taken += line.colour is None
    return found


def _drawn(line: Line, colour: int, across: Axis, up: Axis) -> Markup:
    kind = f"c{colour % NUM_COLOURS}{' dashed' if colour >= NUM_COLOURS else ''}{' faint' if line.faint else ''}"
    parts = Markup("")
    if line.low is not None and line.high is not None:
        there = [_point(x, y, across, up) for x, y in zip(line.x, line.high, strict=True) if up.shows(y)]
        back = [_point(x, y, across, up) for x, y in zip(line.x, line.low, strict=True) if up.shows(y)]
        parts += Markup('<path class="band {}" d="M{}Z"/>').format(kind, "L".join([*there, *reversed(back)]))
    for piece in _pieces(line, across, up):
        if len(piece) == 1:  # a line of one point would not be seen
            parts += Markup('<path class="line dot {}" d="M{}h0.01"/>').format(kind, piece[0])
        else:
            parts += Markup('<path class="line {}" d="M{}"/>').format(kind, "L".join(piece))
    return Markup('<g data-line="{}">{}</g>').format(line.name, parts)


def _pieces(line: Line, across: Axis, up: Axis) -> list[list[str]]:
    pieces: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if across.shows(x) and up.shows(y):
            pieces[-1].append(_point(x, y, across, up))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _point(x: float, y: float, across: Axis, up: Axis) -> str:
    return f"{SIZE * across.place(x):.1f} {SIZE * (1 - up.place(y)):.1f}"


def _grid(across: Axis, up: Axis) -> Markup:
    level = Markup("").join(
        Markup('<path class="grid" d="M0 {0:.1f}H{1}"/>').format(SIZE * (1 - up.place(value)), SIZE)
        for value in ticks(up)
    )
    upright = Markup("").join(
        Markup('<path class="grid" d="M{0:.1f} 0V{1}"/>').format(SIZE * across.place(value), SIZE)
        for value in ticks(across)
    )
    return level + upright


def _tick_texts(across: Axis, up: Axis) -> Markup:
    left = Markup("").join(
        Markup('<span class="tick y" style="bottom:{:.2f}%">{}</span>').format(100 * up.place(value), short(value))
        for value in ticks(up)
    )
    below = Markup("").join(
        Markup('<span class="tick x" style="left:{:.2f}%">{}</span>').format(100 * across.place(value), short(value))
        for value in ticks(across)
    )
    return left + below


def _mark(mark: Mark, across: Axis) -> Markup:
    return Markup('<path class="mark" d="M{0:.1f} 0V{1}"/>').format(SIZE * across.place(mark.x), SIZE)


def _mark_text(mark: Mark, row: int, across: Axis) -> Markup:
    """Below the one before it, so that neighbours don't cover each other."""
    place = 100 * across.place(mark.x)
    side = "right" if place > 60 else "left"
    distance = 100 - place if side == "right" else place
    return Markup('<span class="mark-text" style="{}:{:.2f}%;top:{:.1f}rem">{}</span>').format(
        side, distance, 0.2 + 1.3 * (row % MOST_ROWS), mark.text
    )


def _legend(lines: Sequence[Line], colours: Sequence[int]) -> Markup:
    named = [(line, colour) for line, colour in zip(lines, colours, strict=True) if not line.faint]
    if len(named) < 2:
        return Markup("")
    entries = Markup("").join(
        Markup('<label class="c{}{}"><input type="checkbox" checked data-shows="{}"><b></b>{}</label>').format(
            colour % NUM_COLOURS, " dashed" if colour >= NUM_COLOURS else "", line.name, line.name
        )
        for line, colour in named
    )
    return Markup('<fieldset class="legend"><legend>Lines shown</legend>{}</fieldset>').format(entries)


def _data(lines: Sequence[Line], across: Axis, content: Chart) -> list[dict[str, object]]:
    """What the reading under the cursor is taken from: for every line its places from 0 to 1 and its texts."""
    return [
        {
            "name": line.name,
            "places": [round(across.place(x), 4) for x, y in zip(line.x, line.y, strict=True) if across.shows(x)],
            "texts": [[short(x), short(y)] for x, y in zip(line.x, line.y, strict=True) if across.shows(x)],
            "x": content.x_label,
        }
        for line in lines
        if not line.faint
    ]
