"""Damage for the fuzz tests: bytes that are cut, flipped, moved or made up, and JSON values of a wrong kind."""

import copy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["..", "/etc/passwd", "a\0b", "x" * 5000, "\x1b[31m", 10**30, -1, 2**63, "../../x", "evil/code"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to three faults; rarely bytes that have nothing to do with it."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        fault = draw(st.sampled_from(["flip", "set", "cut", "remove", "insert", "double", "random"]))
        if fault == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif fault == "set" and data:
            data[place] = draw(st.sampled_from(b"\x00\xff\x7f\x80[{\"'0-1"))
        elif fault == "cut":
            del data[place:]
        elif fault == "remove":
            del data[place : place + draw(st.integers(1, 40))]
        elif fault == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=12))
        elif fault == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
        elif fault == "random":
            data = bytearray(draw(st.binary(max_size=80)))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which one to three parts are replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(anything)
        owner, key = draw(st.sampled_from(places))
        fault = draw(st.sampled_from(["replace", "remove", "add"]))
        if fault == "replace":
            owner[key] = draw(anything)
        elif fault == "remove":
            del owner[key]
        elif isinstance(owner, dict):
            owner[draw(st.text(max_size=6))] = draw(anything)
        else:
            owner.append(draw(anything))
    return value


def _places(value: Any) -> Any:
    """(container, key) of every part, from the outside in."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])
