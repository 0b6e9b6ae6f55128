"""Charts: where values land, which ticks are drawn, and that nothing in a name becomes part of the page."""

import itertools
import json
import math
import re

import pytest

from accel_train.tools.page.chart import MOST_POINTS, Axis, Chart, Line, Mark, axis, chart, in_words, short, ticks


def drawn_points(html: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'class="line [^"]*" d="M([^"]*)"', html)
    return [[tuple(map(float, re.findall(r"-?[\d.]+", point)[:2])) for point in path.split("L")] for path in paths]  # type: ignore[misc]


def data_of(html: str) -> list[dict[str, object]]:
    found = re.search(r'data-lines="([^"]*)"', html)
    assert found
    return json.loads(found[1].replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_points_stand_where_their_values_are() -> None:
    (points,) = drawn_points(chart(Chart("loss", "step", [Line("train", [0, 5, 10], [0.0, 1.0, 4.0])])))
    across, up = axis([0, 5, 10], log=False), axis([0.0, 1.0, 4.0], log=False)
    for (x, y), (found_x, found_y) in zip([(0, 0), (5, 1), (10, 4)], points, strict=True):
        assert found_x == pytest.approx(1000 * (x - across.low) / (across.high - across.low), abs=0.06)
        assert found_y == pytest.approx(1000 * (1 - (y - up.low) / (up.high - up.low)), abs=0.06)


def test_a_logarithmic_axis_spaces_decades_evenly() -> None:
    along = axis([1e-6, 1e-2], log=True)
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
    texts = line["texts"]
    assert isinstance(texts, list) and len(texts) <= MOST_POINTS + 2
    assert ["31,234", "900"] in texts


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
