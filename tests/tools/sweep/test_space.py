import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.overrides import apply_overrides
from accel_train.errors import UserError
from accel_train.tools.sweep.space import Choice, Range, as_overrides, parse_space


def one(form: str):
    return parse_space({"a.b": form}).searched["a.b"]


def test_the_forms():
    assert one("log 1e-6 1e-3") == Range("log", 1e-6, 1e-3)
    assert one("uniform 0 0.5") == Range("uniform", 0.0, 0.5)
    assert one(" int 4 12 ") == Range("int", 4, 12)
    assert one("int 4 12 4") == Range("int", 4, 12, 4)
    assert one("choice [4, null, 1.5, adamw, [0.9, 0.98]]") == Choice((4, None, 1.5, "adamw", [0.9, 0.98]))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("log 0 1", "begins above 0"),
        ("log 1 1", "LOW must be less than HIGH"),
        ("uniform 1 0", "LOW must be less than HIGH"),
        ("uniform 0", "must be one of"),
        ("uniform 0 .inf", "no number"),
        ("uniform a b", "no number"),
        ("int 1 2.5", "whole numbers"),
        ("int 1 8 0", "its step at least 1"),
        ("int 4 13 4", "don't meet 13"),
        ("choice 4 8", "a list of two or more"),
        ("choice [4]", "a list of two or more"),
        ("choice [4, 8, 4]", "twice"),
        ("choice [4", "line 1"),
        ("loguniform 1 2", "must be one of"),
        ("", "must be one of"),
        ("= c - 1", "c in 'c - 1' is not searched"),
    ],
)
def test_a_wrong_form_is_said(form, said):
    with pytest.raises(UserError) as error:
        parse_space({"a.b": form, "z": "int 1 2"})
    assert "search.a.b: " in str(error.value)
    assert said in str(error.value)


def test_all_mistakes_are_said_at_once():
    with pytest.raises(UserError) as error:
        parse_space({"a": "log 0 1", "b": "= 2 * a", "run_dir": "choice [a, b]", "task": "choice [scorer, x]"})
    text = str(error.value)
    assert "search.a" in text and "folder of its own" in text and "search.task" in text
    assert "search.b" not in text  # it only follows from the mistake in a


def test_an_expression_alone_searches_nothing():
    with pytest.raises(UserError, match="is not searched"):
        parse_space({"b": "= 1 - a"})


def test_the_middle_of_a_range():
    assert math.isclose(one("log 1e-6 1e-2").middle(), 1e-4)
    assert one("uniform 0.2 0.8").middle() == 0.5
    assert one("int 0 9 3").middle() == 3
    assert one("choice [a, b]").middle() == "a"


@given(low=st.integers(-50, 50), steps=st.integers(1, 20), step=st.integers(1, 7))
def test_the_middle_and_the_edges_are_held(low, steps, step):
    part = Range("int", low, low + steps * step, step)
    assert all(part.holds(value) for value in [part.middle(), *part.edges()])
    assert not part.holds(low - 1) and not part.holds(low + steps * step + 1) and not part.holds(float(low))
    assert step == 1 or not part.holds(low + 1)


def test_what_a_part_holds():
    assert one("log 1e-6 1e-3").holds(1e-6) and not one("log 1e-6 1e-3").holds(2e-3)
    assert not one("uniform 0 1").holds(None) and not one("uniform 0 1").holds(True)
    choice = one("choice [4, null, [1, 2]]")
    assert choice.holds(None) and choice.holds([1, 2]) and not choice.holds(5) and not choice.holds("4")


def test_probes_meet_every_edge_with_the_others_in_their_middle():
    space = parse_space({"a": "uniform 0 1", "b": "choice [x, y, z]", "c": "= 1 - a"})
    assert space.probes() == [
        {"a": 0.5, "b": "x"},
        {"a": 0.0, "b": "x"},
        {"a": 1.0, "b": "x"},
        {"a": 0.5, "b": "y"},
        {"a": 0.5, "b": "z"},
    ]
    assert space.with_derived({"a": 0.25, "b": "x"}) == {"a": 0.25, "b": "x", "c": 0.75}


WORDS = st.sampled_from(
    ["log", "uniform", "int", "choice", "=", "1", "0", "1e-3", "9" * 400, "-.inf", "[1, 2]", "[", "a.b"]
)


@given(st.lists(WORDS | st.text(max_size=8), max_size=5).map(" ".join))
def test_any_text_is_a_form_or_a_mistake(form):
    try:
        space = parse_space({"a": form, "z": "int 0 4"})
    except UserError as error:
        assert "search.a: " in str(error)
        return
    for values in space.probes():
        assert set(values) == set(space.searched)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(JSON)
def test_a_value_reaches_the_configuration_as_it_is(value):
    values: dict = {"a": {}}
    assert apply_overrides(values, as_overrides({"a.b": value})) == []
    assert values == {"a": {"b": value}} and type(values["a"]["b"]) is type(value)


def test_a_number_is_written_as_one_would():
    assert as_overrides({"a.b": 0.5, "c": "yes"}) == ["a.b=0.5", "c=yes"]
