"""Which tower and layer owns each parameter: ordered patterns over names, the first match wins.

A pattern is one layer. With `(\\d+)` it is one layer for every number it meets, in numeric order; with two of them, for
every pair. Where one of two numbers is missing it counts as 0, so that ConvNeXt's downsampling joins the first block of
its stage. An alternative without any number joins the pattern's last layer, as a final norm does.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from accel_train.config.schema import Tower
from accel_train.errors import UserError
from accel_train.optim.layers import LAYER_LISTS

MOST_NAMES_IN_AN_ERROR = 8

LayerKey = tuple[float, ...]
"""Position of the pattern in its tower, then its numbers: keys sort from input to output."""


@dataclass(frozen=True, slots=True)
class Pattern:
    text: str
    regex: re.Pattern[str]
    required: bool
    """False for patterns of a named layer list: they may name parts that a model lacks."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter belongs: the tower's index in the configuration, the layer's number in it, 0 at the input."""

    tower: int
    layer: int


def assign(
    names: Sequence[str], towers: Sequence[Tower], *, optional: Iterable[str] = (), buffers: Iterable[str] = ()
) -> dict[str, Place]:
    """The place of each parameter; those in `optional` may have none.

    A pattern may match nothing but a name in `buffers`: a tower for the temperature is no error where the model holds the
    temperature fixed. Raises UserError for a parameter without a tower, a pattern without a parameter, and a pattern that
    can't be read.
    """
    compiled = [compile_patterns(tower) for tower in towers]
    found: dict[str, tuple[int, LayerKey]] = {}
    for name in names:
        if match := _first_match(name, towers, compiled):
            found[name] = match
    unmatched = [name for name in names if name not in found and name not in set(optional)]
    problems = _unmatched(unmatched, towers) + _unused(names, found, towers, compiled, list(buffers))
    if problems:
        raise UserError("\n".join(problems), code="AT120")
    numbers = [_number_layers({key for tower, key in found.values() if tower == index}) for index in range(len(towers))]
    return {name: Place(tower, numbers[tower][key]) for name, (tower, key) in found.items()}


def compile_patterns(tower: Tower) -> list[Pattern]:
    """The tower's patterns in order, named layer lists written out."""
    where = f"optimizer.towers.{tower.name}.layers"
    if isinstance(tower.layers, str) and tower.layers not in LAYER_LISTS:
        nearest = difflib.get_close_matches(tower.layers, LAYER_LISTS, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(
            f"{where}: '{tower.layers}' is not a named layer list; they are {', '.join(LAYER_LISTS)}.{hint} "
            "Write regular expressions as a list.",
            code="AT121",
        )
    patterns = []
    for entry in [tower.layers] if isinstance(tower.layers, str) else tower.layers:
        named = entry in LAYER_LISTS
        for text in LAYER_LISTS[entry] if named else (entry,):
            try:
                patterns.append(Pattern(text if not named else entry, re.compile(text), required=not named))
            except re.error as error:
                raise UserError(f"{where}: '{text}' is not a regular expression: {error}.", code="AT121") from None
    return patterns


def _first_match(name: str, towers: Sequence[Tower], compiled: list[list[Pattern]]) -> tuple[int, LayerKey] | None:
    for index, patterns in enumerate(compiled):
        for position, pattern in enumerate(patterns):
            if match := pattern.regex.search(name):
                return index, _layer_key(position, match, towers[index])
    return None


def _layer_key(position: int, match: re.Match[str], tower: Tower) -> LayerKey:
    numbers = match.groups()
    for number in numbers:
        if number is not None and not number.isdecimal():
            raise UserError(
                f"optimizer.towers.{tower.name}.layers: a group of '{match.re.pattern}' captures '{number}' in "
                f"'{match.string}'; groups count layers, so they capture numbers. Write (?:...) for other groups.",
                code="AT121",
            )
    if numbers and all(number is None for number in numbers):
        return (position, math.inf)
    return (position, *(int(number or 0) for number in numbers))


def _number_layers(keys: set[LayerKey]) -> dict[LayerKey, int]:
    """Numbers the layers of a tower from 0 at the input."""
    numbers: dict[LayerKey, int] = {}
    last: LayerKey | None = None
    number = -1
    for key in sorted(keys):
        joins_last = key[1:] == (math.inf,) and last is not None and last[0] == key[0]
        number += not joins_last
        numbers[key] = number
        last = key
    return numbers


def _unused(
    names: Sequence[str],
    found: dict[str, tuple[int, LayerKey]],
    towers: Sequence[Tower],
    compiled: list[list[Pattern]],
    buffers: list[str],
) -> list[str]:
    used = {(tower, int(key[0])) for tower, key in found.values()}
    problems = []
    for index, (tower, patterns) in enumerate(zip(towers, compiled, strict=True)):
        where = f"optimizer.towers.{tower.name}.layers"
        if not any((index, position) in used for position in range(len(patterns))) and not patterns[0].required:
            problems.append(f"{where}: '{tower.layers}' matches no parameter that an earlier tower leaves.")
        for position, pattern in enumerate(patterns):
            fixed = any(pattern.regex.search(name) for name in buffers)
            if pattern.required and (index, position) not in used and not fixed:
                problems.append(f"{where}: '{pattern.text}' {_why_unused(pattern, names, found, towers)}")
    return problems


def _why_unused(
    pattern: Pattern, names: Sequence[str], found: dict[str, tuple[int, LayerKey]], towers: Sequence[Tower]
) -> str:
    for name in names:
        if pattern.regex.search(name) and name in found:
            owner = towers[found[name][0]].name
            return f"matches only what an earlier pattern owns, such as '{name}' in tower '{owner}'. Change the order."
    nearest = max(names, key=lambda name: _likeness(pattern.text, name))
    return f"matches no parameter. Correct or remove it. Nearest: '{nearest}'."


def _unmatched(unmatched: list[str], towers: Sequence[Tower]) -> list[str]:
    problems = [
        f"optimizer.towers: '{name}' matches no tower. Add a pattern to a tower, or a tower with 'lr: 0' to freeze it."
        + _nearest_pattern(name, towers)
        for name in unmatched[:MOST_NAMES_IN_AN_ERROR]
    ]
    if len(unmatched) > MOST_NAMES_IN_AN_ERROR:
        problems.append(f"optimizer.towers: {len(unmatched) - MOST_NAMES_IN_AN_ERROR} more parameters match no tower.")
    return problems


def _nearest_pattern(name: str, towers: Sequence[Tower]) -> str:
    scored = [
        (_likeness(text, name), f" Nearest: {tower.name} ['{entry}'].")
        for tower in towers
        for entry in ([tower.layers] if isinstance(tower.layers, str) else tower.layers)
        for text in LAYER_LISTS.get(entry, (entry,))
    ]
    likeness, hint = max(scored)
    return hint if likeness > 0.6 else ""


def _likeness(pattern: str, name: str) -> float:
    """How much of a pattern's letters, without the signs of the notation, a name has in the same order; 1 is all."""
    letters = re.sub(r"\\d|[\\^$()?:+*|\[\]]", "", pattern)
    blocks = difflib.SequenceMatcher(None, letters, name, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / max(1, len(letters))
