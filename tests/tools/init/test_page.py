import pytest

from accel_train.config.yaml_text import read_yaml
from accel_train.tools.init.page import WIDTH, Page, number, scalar


def test_comments_stand_below_each_other_and_sections_apart() -> None:
    page = Page()
    page.line("seed: 0", "a draw")
    page.section("data")
    page.line("path: data/pairs", "the data", depth=1)
    page.line("image_size: 64", depth=1)
    lines = page.render().splitlines()
    assert lines[0].index("#") == lines[3].index("#")
    assert lines[1:3] == ["", "data:"]
    assert lines[4] == "  image_size: 64"


def test_a_reason_that_does_not_fit_goes_above() -> None:
    page = Page()
    page.line(f"key: [{'1, ' * 30}1]", "why " * 40, depth=1)
    *above, value = page.render().splitlines()
    assert value.startswith("  key: [1")
    assert len(above) == 2
    assert all(line.startswith("  # why") and len(line) <= WIDTH for line in above)


@pytest.mark.parametrize(
    "text",
    [
        "data/pairs",
        "sample:emoji-zh",
        "my data",
        "数据/图",
        "a: b",
        "null",
        "1e-3",
        "yes",
        "it's",
        'a"b',
        "#x",
        "a:",
        "{a}",
        "C:\\d",
    ],
)
def test_any_text_is_read_back(text: str) -> None:
    assert read_yaml(f"key: {scalar(text)}  # why") == {"key": text}
    assert read_yaml(f"{{key: {scalar(text)}, other: 1}}") == {"key": text, "other": 1}


@pytest.mark.parametrize("value", [0, 1e-5, 3e-6, 5e-5, 0.05, 1.0, 2e-3])
def test_any_number_is_read_back(value: float) -> None:
    assert read_yaml(f"key: {number(value)}") == {"key": value}
