"""What a sweep searches: for each key a range, a choice, or a value that follows from other keys."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from accel_train.config.yaml_text import read_yaml, write_yaml
from accel_train.errors import UserError
from accel_train.tools.sweep.expression import Expression, parse_expression

FORMS = "log LOW HIGH, uniform LOW HIGH, int LOW HIGH [STEP], choice [A, B, ...], or = EXPRESSION"
LARGEST = 1e300
"""Of a range: its width must be a number too."""
SWEEPS_OWN = {
    "run_dir": "each trial has a folder of its own",
    "task": "trials of different tasks have no score in common",
    "evaluation.best_score": "all trials are compared by one score; give it as `score`",
}
"""Keys that can't be searched, and why."""


@dataclass(frozen=True, slots=True)
class Range:
    kind: Literal["log", "uniform", "int"]
    low: float
    high: float
    step: int = 1
    """Of `int`."""

    def edges(self) -> list[float]:
        return [self.low, self.high]

    def middle(self) -> float:
        if self.kind == "log":
            return math.sqrt(self.low) * math.sqrt(self.high)
        if self.kind == "int":
            return self.low + (self.high - self.low) // self.step // 2 * self.step
        return (self.low + self.high) / 2

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        return self.kind != "int" or (isinstance(value, int) and (value - self.low) % self.step == 0)


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[Any, ...]

    def edges(self) -> list[Any]:
        return list(self.values)

    def middle(self) -> Any:
        return self.values[0]

    def holds(self, value: object) -> bool:
        return as_text(value) in self.texts()

    def texts(self) -> list[str]:
        """The values as JSON: the names under which a study knows them, since a value may be a list."""
        return [as_text(value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Space:
    """Keys are dotted paths, as an override has them."""

    searched: dict[str, Range | Choice]
    derived: dict[str, Expression]

    def with_derived(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The searched values and those that follow from them. Raises ValueError if one can't be computed."""
        return {**values, **{key: expression.value(values) for key, expression in self.derived.items()}}

    def probes(self) -> list[dict[str, Any]]:
        """Points that must be valid configurations: every key at each of its edges, with the others in their middle."""
        middle = {key: part.middle() for key, part in self.searched.items()}
        return [middle] + [
            {**middle, key: edge} for key, part in self.searched.items() for edge in part.edges() if edge != middle[key]
        ]


def as_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=repr)


END_OF_SCALAR = "\n...\n"
"""What YAML writes behind a value that is neither a list nor a mapping."""


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value`, to be read back as the same values."""
    return [f"{key}={write_yaml(value).removesuffix(END_OF_SCALAR)}" for key, value in values.items()]


def parse_space(lines: Mapping[str, str]) -> Space:
    """From `key: form` lines. Raises UserError with one line for each mistake."""
    searched: dict[str, Range | Choice] = {}
    derived: dict[str, Expression] = {}
    problems = []
    for key, text in lines.items():
        try:
            if key in SWEEPS_OWN:
                raise ValueError(f"it can't be searched: {SWEEPS_OWN[key]}")
            found = _parse(text)
        except ValueError as error:
            problems.append(f"search.{key}: found {text!r}; {error}.")
            continue
        if isinstance(found, Expression):
            derived[key] = found
        else:
            searched[key] = found
    for key, expression in derived.items():
        for name in expression.names:
            if name not in searched and f"search.{name}: " not in "".join(problems):
                problems.append(
                    f"search.{key}: {name} in {expression.text!r} is not searched; an expression holds names of keys "
                    f"with a range or a choice: {', '.join(searched) or 'there is none'}."
                )
    if not searched and not problems:
        problems.append(f"search: no key has a range or a choice. Give at least one: {FORMS}.")
    if problems:
        raise UserError("\n  ".join(["the search is not right:", *problems]))
    return Space(searched, derived)


def _parse(text: str) -> Range | Choice | Expression:
    if text.lstrip().startswith("="):
        return parse_expression(text.lstrip()[1:])
    kind, _, rest = text.strip().partition(" ")
    if kind == "choice":
        return _choice(rest)
    numbers = [_number(word) for word in rest.split()]
    if kind == "log" and len(numbers) == 2:
        if numbers[0] <= 0:
            raise ValueError("a log range begins above 0")
        return _range(Range("log", float(numbers[0]), float(numbers[1])))
    if kind == "uniform" and len(numbers) == 2:
        return _range(Range("uniform", float(numbers[0]), float(numbers[1])))
    if kind == "int" and len(numbers) in (2, 3):
        if not all(isinstance(number, int) for number in numbers) or (len(numbers) == 3 and numbers[2] < 1):
            raise ValueError("an int range has whole numbers, its step at least 1")
        low, high, step = int(numbers[0]), int(numbers[1]), int([*numbers, 1][2])
        if (high - low) % step:
            raise ValueError(f"steps of {step} from {low} don't meet {high}")
        return _range(Range("int", low, high, step))
    raise ValueError(f"it must be one of: {FORMS}")


def _range(found: Range) -> Range:
    if not found.low < found.high:
        raise ValueError("LOW must be less than HIGH")
    return found


def _choice(text: str) -> Choice:
    values = read_yaml(text)
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError("a choice is a list of two or more values: choice [4, 8, 12]")
    choice = Choice(tuple(values))
    if len(set(choice.texts())) < len(values):
        raise ValueError("a value of the choice stands there twice")
    return choice


def _number(word: str) -> int | float:
    value = read_yaml(word)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise ValueError(f"{word!r} is no number")
    return value
