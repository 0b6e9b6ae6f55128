import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.tools.sweep.expression import parse_expression

NAMES = {"loss.quality_weight": 0.3, "steps": 7, "optimizer.towers.text.lr": 1e-4}
LEAVES = st.sampled_from(["0.5", "3", *NAMES])


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operation = st.tuples(inner, st.sampled_from([" + ", " - ", " * ", " / ", " // "]), inner)
    return st.one_of(
        operation.map("".join).map("({})".format),
        inner.map("-({})".format),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        ),
        inner.map("round({})".format),
    )


@given(st.recursive(LEAVES, compound, max_leaves=5))
def test_is_what_python_makes_of_it(text):
    plain = text
    for number, name in enumerate(NAMES):
        plain = plain.replace(name, f"v{number}")
    values = {f"v{number}": value for number, value in enumerate(NAMES.values())}
    try:
        expression = parse_expression(text)
    except ValueError as error:
        assert "depends on no searched key" in str(error) or "characters" in str(error)
        return
    try:
        expected = eval(plain, {"min": min, "max": max, "round": round}, values)
    except ArithmeticError:
        with pytest.raises(ValueError, match="can't be computed"):
            expression.value(NAMES)
        return
    assert math.isclose(expression.value(NAMES), expected)
    assert type(expression.value(NAMES)) is type(expected)
    assert set(expression.names) == {name for name in NAMES if name in text}


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "a.__class__()",
        "a ** 9",
        "a if a else 1",
        "[a]",
        "a < 1",
        "lambda: a",
        "'a'",
        "True * a",
        "a[0]",
        "min(a, key=b)",
        "min()",
        "abs(a)",
        "1j * a",
        "a; b",
        "(a := 1)",
        "towers.0.lr",
        "",
        "-" * 1000 + "a",
        "(" * 150 + "a",
    ],
)
def test_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match=r"it may hold numbers|200 are the most|is not the name"):
        parse_expression(text)


def test_a_value_without_a_searched_key_is_refused():
    with pytest.raises(ValueError, match="depends on no searched key"):
        parse_expression("1 - 0.5")


@pytest.mark.parametrize("found", ["text", None, True, [1.0]])
def test_a_name_that_holds_no_number_is_said(found):
    with pytest.raises(ValueError, match="no number"):
        parse_expression("1 - a").value({"a": found})
