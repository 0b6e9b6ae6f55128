"""Clouds, bars and histograms: that they show what they were given, and nothing in a name becomes part of the page."""

import re

import numpy as np
import pytest

from accel_train.tools.page.axis import axis
from accel_train.tools.page.marks import MOST_DOTS, bars, histogram, scatter

EVIL = "</script><img src=x onerror=alert(1)>\"'"


def dots(html: str) -> list[tuple[float, float]]:
    found = re.search(r'class="dots c0" d="([^"]*)"', html)
    assert found
    return [(float(x), float(y)) for x, y in re.findall(r"M([-\d.]+) ([-\d.]+)h", found[1])]


def test_points_of_a_cloud_stand_on_equal_axes() -> None:
    html = scatter("a", "rated", "predicted", [1.0, 5.0], [2.0, 5.0], words="two points")
    both = axis([[1.0, 5.0], [2.0, 5.0]], log=False)
    expected = [(1000 * both.place(x), 1000 * (1 - both.place(y))) for x, y in ((1.0, 2.0), (5.0, 5.0))]
    assert dots(html) == [pytest.approx(point, abs=0.06) for point in expected]
    assert 'aria-label="two points"' in html


def test_a_large_cloud_is_thinned_and_says_so() -> None:
    values = np.linspace(0, 1, 10_000).tolist()
    html = scatter("a", "x", "y", values, values, words="")
    assert len(dots(html)) <= MOST_DOTS
    assert "One point in 7 is drawn." in html


def test_bars_are_as_high_as_their_values() -> None:
    html = bars("ranks", [("1", 0.5, "50 %"), ("2-5", 0.25, "25 %"), ("over 5", 0.0, "0 %")])
    assert [float(height) for height in re.findall(r"height:([\d.]+)%", html)] == [80, 40, 0]
    assert "50 %" in html and "over 5" in html
    assert bars("empty", [])


def test_a_histogram_has_one_box_for_each_interval_that_holds_something() -> None:
    values = [0.0] * 5 + [1.0] * 3
    html = histogram("residuals", values, x_label="error", words="eight values")
    found = re.search(r'class="boxes c0" d="([^"]*)"', html)
    assert found and found[1].count("Z") == 2
    heights = sorted(float(y) for y in re.findall(r"M[-\d.]+ [-\d.]+L[-\d.]+ ([-\d.]+)L", found[1]))
    top = axis([[0.0], [5, 3]], log=False)
    assert heights == pytest.approx([1000 * (1 - top.place(5)), 1000 * (1 - top.place(3))], abs=0.06)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0], [-1e300, 1e300]])
def test_a_histogram_of_odd_values_is_drawn(values: list[float]) -> None:
    assert "<figure" in histogram("a", values, x_label="x", words="")


def test_names_are_text_and_never_markup() -> None:
    html = scatter(EVIL, EVIL, EVIL, [1.0], [1.0], words=EVIL)
    html += bars(EVIL, [(EVIL, 1.0, EVIL)], x_label=EVIL, note=EVIL) + histogram(EVIL, [1.0], x_label=EVIL, words=EVIL)
    assert "<img" not in html and "</script>" not in html
