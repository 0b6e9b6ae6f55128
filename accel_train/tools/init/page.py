"""A configuration as commented lines: each value with the reason for it, set in columns where they fit."""

import json
import re
from typing import Any

from accel_train.config.yaml_text import read_yaml, write_yaml

WIDTH = 120
COLUMN, FURTHEST = 40, 70
"""Comments begin here, or further right where a group's values are longer."""
PLAIN = re.compile(r"[\w./~:+@-]+")


class Page:
    """Lines of YAML in order. Comments of one group stand below each other; a section begins a group, after a blank line."""

    def __init__(self) -> None:
        self._groups: list[list[tuple[str, str]]] = [[]]

    def line(self, text: str, why: str = "", *, depth: int = 0) -> None:
        self._groups[-1].append(("  " * depth + text, why))

    def group(self) -> None:
        """What follows is aligned by itself."""
        self._groups.append([])

    def section(self, title: str, why: str = "") -> None:
        """The key of a section."""
        self.line("")
        self.group()
        self.line(f"{title}:", why)

    def values(self, mapping: dict[str, Any] | list[Any], *, depth: int) -> None:
        """A mapping or list that was decided elsewhere, as lines without comments."""
        for text in write_yaml(mapping).splitlines():
            self.line(text, depth=depth)

    def render(self) -> str:
        return "".join(f"{line}\n" for group in self._groups for line in _aligned(group))


def _aligned(lines: list[tuple[str, str]]) -> list[str]:
    fitting = [len(text) + 2 for text, why in lines if why and len(text) + 4 + len(why) <= WIDTH]
    column = max([COLUMN, *(end for end in fitting if end <= FURTHEST)])
    rendered = []
    for text, why in lines:
        at = max(column, len(text) + 2)
        if not why:
            rendered.append(text)
        elif at + 2 + len(why) <= WIDTH:
            rendered.append(f"{text:<{at}}# {why}")
        elif len(text) + 4 + len(why) <= WIDTH:
            rendered.append(f"{text}  # {why}")
        else:
            indent = " " * (len(text) - len(text.lstrip()))
            rendered += [*_wrapped(why, indent), text]
    return rendered


def _wrapped(why: str, indent: str) -> list[str]:
    lines, line = [], f"{indent}#"
    for word in why.split():
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]


def scalar(text: str) -> str:
    """A text as YAML has it, in a block or between braces, quoted where it must be."""
    is_plain = PLAIN.fullmatch(text) and not text.endswith(":") and read_yaml(f"{{key: {text}}}") == {"key": text}
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def number(value: float) -> str:
    """2.0e-5 for what is small, 0.05 or 1.0 else; 0 as it is."""
    if value == 0 or value >= 0.01:
        return "0" if value == 0 else str(float(value))
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
