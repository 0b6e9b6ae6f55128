"""Charts: where values land, which ticks are drawn, and that nothing in a name becomes part of the page."""

import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pytest

from accel_train.tools.page.axis import Axis, axis, percent, short, ticks
from accel_train.tools.page.chart import MOST_END_LABELS, MOST_POINTS, Chart, Line, Mark, chart, in_words, thinned_rows


def drawn_points(html: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'class="line [^"]*" d="M([^"]*)"', html)
    return [[tuple(map(float, re.findall(r"-?[\d.]+", point)[:2])) for point in path.split("L")] for path in paths]  # type: ignore[misc]


def data_of(html: str) -> list[dict[str, list[Any]]]:
    found = re.search(r'data-lines="([^"]*)"', html)
    assert found
    return json.loads(found[1].replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))[
        "lines"
    ]


def test_points_stand_where_their_values_are() -> None:
    (points,) = drawn_points(chart(Chart("loss", "step", [Line("train", [0, 5, 10], [0.0, 1.0, 4.0])])))
    across, up = axis([[0, 5, 10]], log=False, tight=True), axis([[0.0, 1.0, 4.0]], log=False)
    for (x, y), (found_x, found_y) in zip([(0, 0), (5, 1), (10, 4)], points, strict=True):
        assert found_x == pytest.approx(1000 * (x - across.low) / (across.high - across.low), abs=0.06)
        assert found_y == pytest.approx(1000 * (1 - (y - up.low) / (up.high - up.low)), abs=0.06)


def test_a_logarithmic_axis_spaces_decades_evenly() -> None:
    along = axis([[1e-6], [1e-2]], log=True)
    steps = [along.place(10 * value) - along.place(value) for value in (1e-6, 1e-5, 1e-4, 1e-3)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert ticks(along) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert ticks(Axis(3.0, 40.0, log=True)) == pytest.approx([5, 10, 20])
    assert len(ticks(Axis(1e-12, 1e3, log=True))) <= 6


@pytest.mark.parametrize("high", [0.0013, 0.7, 5, 99, 12345, 3e7])
def test_linear_ticks_are_few_round_and_inside(high: float) -> None:
    found = ticks(Axis(0.0, high, log=False))
    assert 3 <= len(found) <= 7
    assert all(0 <= value <= high for value in found)
    widths = {round((b - a) / high, 9) for a, b in itertools.pairwise(found)}
    assert len(widths) == 1


def test_values_that_are_not_finite_leave_a_gap() -> None:
    html = chart(Chart("loss", "step", [Line("train", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, math.inf, 3.0])]))
    assert [len(points) for points in drawn_points(html)] == [2, 1]
    logarithmic = Chart("loss", "step", [Line("train", [1, 2, 3], [1.0, 0.0, 2.0])], log_y=True)
    assert [len(points) for points in drawn_points(chart(logarithmic))] == [1, 1]


def test_a_long_line_is_thinned_and_keeps_its_spikes() -> None:
    values = [1.0] * 50_000
    values[31_234] = 900.0
    values[40_001] = math.nan
    (line,) = data_of(chart(Chart("loss", "step", [Line("train", list(range(50_000)), values)])))
    assert len(line["texts"]) == len(line["xs"]) <= MOST_POINTS + 2
    assert dict(zip(line["xs"], line["texts"], strict=True))[31_234] == "900"
    assert line["xs"][0] == 0 and line["xs"][-1] == 49_999


def test_a_chart_without_values_is_drawn() -> None:
    empty = Chart("loss", "step", [Line("train", [], [])])
    assert "no values yet" in in_words(empty)
    assert "<figure" in chart(empty)


def test_names_are_text_and_never_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>\"'"
    html = chart(Chart(evil, evil, [Line(evil, [1], [1]), Line("b", [1], [2])], marks=[Mark(1, evil)], note=evil))
    assert "<img" not in html and "</script>" not in html
    assert data_of(html)[1]["name"] == "b"


def test_words_name_first_last_and_extremes() -> None:
    said = in_words(Chart("Loss", "step", [Line("train", [1, 2, 3], [4.0, 0.5, 1.0])], marks=[Mark(2, "resumed")]))
    assert said == "Loss over step: train from 4 to 1, between 0.5 and 4; resumed at 2"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3e-4, "3e-4"), (0.0125, "0.0125"), (531.2, "531.2"), (31234, "31,234"), (1e6, "1e6")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_every_interval_keeps_its_lowest_and_highest_value() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    rows = thinned_rows(values.tolist(), 100)
    edges = np.linspace(0, len(values), 51).astype(int)
    for start, end in itertools.pairwise(edges.tolist()):
        kept = values[rows[(rows >= start) & (rows < end)]]
        assert kept.min() == values[start:end].min() and kept.max() == values[start:end].max()
    assert thinned_rows([math.nan] * 1000, 100).tolist() == [*range(0, 1000, 20), 999]


def test_a_million_values_take_no_room() -> None:
    values = np.random.default_rng(0).normal(size=1_000_000).tolist()
    html = chart(Chart("loss", "step", [Line("train", range(1_000_000), values)]))
    assert len(html) < 40_000


def test_names_stand_at_the_ends_of_lines_apart_from_each_other() -> None:
    def places(*last: float) -> list[float]:
        lines = [Line(f"line {n}", [0, 1], [0.0, value]) for n, value in enumerate(last)]
        return [
            float(place)
            for place in re.findall(r'end-label c\d" style="bottom:([-\d.]+)%', chart(Chart("a", "x", lines)))
        ]

    found = places(1.0, 0.99, 0.98, 0.1)
    assert len(found) == 4
    assert all(upper - lower >= 7.4 for lower, upper in itertools.pairwise(found))
    assert max(found) <= 100
    assert places(1.0) == [], "one line is named by the title"
    assert places(*range(MOST_END_LABELS + 1)) == []


def test_shares_are_written_in_percent() -> None:
    html = chart(Chart("recall", "step", [Line("R@1", [0, 1], [0.0, 0.456])], percent=True))
    assert data_of(html)[0]["texts"] == ["0\u00a0%", "45.6\u00a0%"]
    assert ">40\u00a0%<" in html
    assert percent(1.0) == "100\u00a0%"
