import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from accel_train.config.schema import ScheduleSection
from accel_train.errors import UserError
from accel_train.optim.param_groups import GroupPlan, ParamGroup
from accel_train.tools.lr_picture import PhaseRates, draw_learning_rates, ladders, rate_text, spread


def group(name: str, layer: int, lr: float) -> ParamGroup:
    return ParamGroup(name, name.partition(".")[0], layer, 1, ("a",), 1, lr, 0.0, None)


PLAN = GroupPlan(
    [group("text.00", 0, 1e-5), group("text.00.no_decay", 0, 1e-5), group("text.01", 1, 2e-5), group("heads", 0, 2e-5)],
    [],
)


ONE_STEP = PhaseRates("first", 0, PLAN, ScheduleSection(), [1.0])


@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.0, 0.5, 0.0], [0.1] * 5000])
def test_a_picture_is_written(scales: list[float], tmp_path: Path) -> None:
    path = tmp_path / "new" / "lr.png"
    draw_learning_rates([PhaseRates("first", 0, PLAN, ScheduleSection(), scales)], str(path))
    with Image.open(path) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.png, \.svg or \.pdf"):
        draw_learning_rates([ONE_STEP], str(tmp_path / "lr.bmp"))


def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'accel_train\[plot\]'"):
        draw_learning_rates([ONE_STEP], str(tmp_path / "lr.png"))


def test_groups_of_a_layer_are_one_rung() -> None:
    assert ladders(PLAN) == {"text": [(0, 1e-5), (1, 2e-5)], "heads": [(0, 2e-5)]}


@pytest.mark.parametrize(("lr", "text"), [(2.39148e-5, "2.39e-5"), (1e-3, "1e-3"), (0.1, "1e-1"), (2.0, "2e0")])
def test_rate_text(lr: float, text: str) -> None:
    assert rate_text(lr) == text


def test_labels_that_fit_stay() -> None:
    assert spread([0.9, 0.5, 0.1], 0.05) == pytest.approx([0.9, 0.5, 0.1])


def test_equal_labels_spread_around_their_height() -> None:
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.6, 0.5, 0.4])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_spread_keeps_order_and_distance(heights: list[float]) -> None:
    moved = spread(sorted(heights, reverse=True), 0.05)
    assert all(above - below >= 0.05 - 1e-9 for above, below in itertools.pairwise(moved))
