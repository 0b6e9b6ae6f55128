"""Charts that are not lines over x: points of two values, and bars."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from accel_train.tools.page.axis import Axis, axis
from accel_train.tools.page.chart import SIZE, grid, point, tick_texts

MOST_DOTS = 1500
"""Points drawn of a cloud; of more, every k-th."""


def scatter(title: str, x_label: str, y_label: str, x: Sequence[float], y: Sequence[float], *, words: str) -> Markup:
    """A cloud of points on equal axes, with the diagonal where both values are the same. `words` is for who can't see it."""
    stride = -(-len(x) // MOST_DOTS)
    both = axis([x, y], log=False)
    dots = "".join(f"M{point(a, b, both, both)}h0.01" for a, b in zip(x[::stride], y[::stride], strict=True))
    note = f"One point in {stride} is drawn." if stride > 1 else ""
    return Markup(
        '<figure class="chart cloud"><figcaption>{title}</figcaption><p class="y-label">{y_label}</p>'
        '<div class="plot" role="img" aria-label="{words}">'
        '<svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" aria-hidden="true">{grid}'
        '<path class="diagonal" d="M0 {size}L{size} 0"/><path class="dots c0" d="{dots}"/></svg>{ticks}</div>'
        '<div class="x-label">{x_label}</div>{note}</figure>'
    ).format(
        title=title,
        words=words,
        size=SIZE,
        grid=grid(both, both),
        dots=dots,
        ticks=tick_texts(both, both),
        x_label=x_label,
        y_label=y_label,
        note=Markup('<p class="note">{}</p>').format(note) if note else "",
    )


def bars(title: str, heights: Sequence[tuple[str, float, str]], *, x_label: str = "", note: str = "") -> Markup:
    """Upright bars, each (name, height, what is written on it). All of it is text, so it reads without the picture."""
    most = max((height for _, height, _ in heights), default=0.0) or 1.0
    columns = Markup("").join(
        Markup(
            '<li><span class="bar-value">{}</span><b style="height:{:.2f}%" aria-hidden="true"></b>'
            '<span class="bar-name">{}</span></li>'
        ).format(written, 80 * height / most, name)
        for name, height, written in heights
    )
    return Markup('<figure class="chart"><figcaption>{}</figcaption><ol class="bars">{}</ol>{}{}</figure>').format(
        title,
        columns,
        Markup('<div class="x-label flush">{}</div>').format(x_label) if x_label else "",
        Markup('<p class="note">{}</p>').format(note) if note else "",
    )


def histogram(title: str, values: Sequence[float], *, x_label: str, words: str, num_bins: int = 24) -> Markup:
    """How often values lie where, with a line at zero if zero is among them."""
    held = np.asarray(values, float)
    edges = np.histogram_bin_edges(held, bins=num_bins)
    counts, _ = np.histogram(held, bins=edges)
    across = Axis(float(edges[0]), float(edges[-1]), log=False)
    up = axis([[0.0], counts.tolist()], log=False)
    boxes = "".join(
        f"M{point(left, 0, across, up)}L{point(left, count, across, up)}L{point(right, count, across, up)}"
        f"L{point(right, 0, across, up)}Z"
        for left, right, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        if count
    )
    zero = f"M{SIZE * across.place(0):.1f} 0V{SIZE}" if across.low < 0 < across.high else ""
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption><div class="plot" role="img" aria-label="{words}">'
        '<svg viewBox="0 0 {size} {size}" preserveAspectRatio="none" aria-hidden="true">{grid}'
        '<path class="boxes c0" d="{boxes}"/><path class="zero" d="{zero}"/></svg>{ticks}</div>'
        '<div class="x-label">{x_label}</div></figure>'
    ).format(
        title=title,
        words=words,
        size=SIZE,
        grid=grid(across, up),
        boxes=boxes,
        zero=zero,
        ticks=tick_texts(across, up),
        x_label=x_label,
    )
