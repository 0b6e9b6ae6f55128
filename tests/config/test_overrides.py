import copy
from typing import Any

import pytest

from accel_train.config.overrides import apply_overrides

VALUES = {
    "seed": 1,
    "data": {"path": "a"},
    "early": None,
    "towers": [{"name": "text", "lr": 1}, {"name": "7", "lr": 2}],
}


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ["seed"], 7),
        ("seed=null", ["seed"], None),
        ("data.path=b=c", ["data", "path"], "b=c"),
        ("data.path=''", ["data", "path"], ""),
        ("data.new.deep=1e-3", ["data", "new", "deep"], 1e-3),
        ("early.patience=[1, 2]", ["early", "patience"], [1, 2]),
        ("towers.0.lr=1e-4", ["towers", 0, "lr"], 1e-4),
        ("towers.text.lr=1e-4", ["towers", 0, "lr"], 1e-4),
        ("towers.7.lr=3", ["towers", 1, "lr"], 3),  # a name comes before a position
        ("towers.text={}", ["towers", 0], {}),
        ("towers=[]", ["towers"], []),
    ],
)
def test_sets_one_value(override: str, path: list[str | int], value: Any) -> None:
    found = copy.deepcopy(VALUES)
    assert apply_overrides(found, [override]) == []
    at: Any = found
    for part in path:
        at = at[part]
    assert at == value


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "an override is written section.key=value"),
        ("=3", "an override is written section.key=value"),
        ("data..path=3", "an override is written section.key=value"),
        ("seed=", "there is no value; write seed=null for none"),
        ("seed.x=3", "seed is 1, which has no keys"),
        ("towers.txt.lr=3", "towers has no item 'txt'; positions are 0 to 1. Nearest: text."),
        ("towers.2.lr=3", "towers has no item '2'; positions are 0 to 1. Their names: text, 7."),
        ("seed=[1", "line 1, column 3: "),
        ("seed={a: 1, a: 2}", "key 'a' is given twice"),
    ],
)
def test_what_is_refused(override: str, problem: str) -> None:
    found = copy.deepcopy(VALUES)
    (line,) = apply_overrides(found, [override])
    assert line.startswith(f"override {override!r}: ")
    assert problem in line
    assert found == VALUES


def test_the_same_key_twice() -> None:
    assert apply_overrides({}, ["a=1", "a=1"]) == []
    (line,) = apply_overrides({}, ["a=1", "a=2"])
    assert "a was given before as '1'; give it once" in line


def test_every_problem_is_reported() -> None:
    assert len(apply_overrides(copy.deepcopy(VALUES), ["x", "seed.y=1", "seed=2", "towers.no.lr=1"])) == 3
