import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.yaml_text import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("010", 10),  # YAML 1.1 says 8
        ("-3", -3),
        ("12:30:45", "12:30:45"),  # YAML 1.1 says 45045
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("1e", "1e"),
        ("[0.9, 1e-2]", [0.9, 0.01]),
        ("'1e-4'", "1e-4"),
        ("<<: 3", {"<<": 3}),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: key 'a' is given twice, first in line 1"),
        ("x:\n  a: 1\n  a: 1", "line 3, column 3: key 'a' is given twice, first in line 2"),
        ("a: &x 1\nb: *x", "line 2, column 4: an alias"),
        ("a: *x", "quote a text that begins with *"),
        ("a: &x [*x]", "an alias"),
        ("a: !!python/object:os.system x", "the tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("a: !!timestamp x", "is not supported"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "another document"),
        ("? [1]\n: 2", "line 1, column 3: the key [1] must be text: quote it"),
        ("a: {1: 2}", "line 1, column 5: the key 1 must be text: quote it"),
        ("~: 2", "the key None must be text"),
        ("a: \x07", "special characters are not allowed"),
        ("[" * 2000, "nested too deeply"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_yaml(text)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_of_plain_values_stand_on_one_line() -> None:
    text = write_yaml({"b": [0.9, 0.98], "a": [{"x": None, "y": "1e-4"}], "c": "中文", "d": {}})
    assert text == "b: [0.9, 0.98]\na:\n  - x: null\n    y: '1e-4'\nc: 中文\nd: {}\n"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_round_trip(value: Any) -> None:
    assert read_yaml(write_yaml(value)) == value


def test_nan_is_read() -> None:
    assert math.isnan(read_yaml(".nan"))
