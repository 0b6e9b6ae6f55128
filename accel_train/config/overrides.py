"""`section.key=value` on the command line: changes to the mapping that was read, before anything is checked."""

import difflib
from typing import Any

from accel_train.config.yaml_text import read_yaml


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> list[str]:
    """Changes `values` in place. Returns one line for each override that can't be applied.

    A part of the path names a key, the position of a list item (from 0), or the `name` of a list item:
    `optimizer.towers.0.lr=1e-4`, `optimizer.towers.text.lr=1e-4`. Sections that are not there yet are made. The value
    is read as YAML: `null`, `true`, `[0.9, 1.0]`.
    """
    problems = []
    given: dict[str, str] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        path = path.strip()
        try:
            if not equals or not all(path.split(".")):
                raise ValueError("an override is written section.key=value")
            if given.setdefault(path, text) != text:
                raise ValueError(f"{path} was given before as {given[path]!r}; give it once")
            if not text.strip():
                raise ValueError(f"there is no value; write {path}=null for none")
            _set(values, path.split("."), read_yaml(text))
        except ValueError as error:
            problems.append(f"override {override!r}: {error}")
    return problems


def _set(values: Any, path: list[str], value: Any) -> None:
    """Raises ValueError if the path leads into a value that has no keys, or to a list item that isn't there."""
    target = values
    for depth, part in enumerate(path):
        where = ".".join(path[:depth])
        if isinstance(target, list):
            key: str | int = _item(target, part, where)
        elif isinstance(target, dict):
            key = part
        else:
            raise ValueError(f"{where} is {target!r}, which has no keys")
        if depth == len(path) - 1:
            target[key] = value
        else:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[key]


def _item(items: list[Any], part: str, where: str) -> int:
    """The position of the list item that `part` names."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    known = [name for name in names if isinstance(name, str)]
    near = difflib.get_close_matches(part, known, n=1)
    hint = f" Nearest: {near[0]}." if near else f" Their names: {', '.join(known)}." if known else ""
    last = f"0 to {len(items) - 1}" if items else "none, the list is empty"
    raise ValueError(f"{where} has no item {part!r}; positions are {last}.{hint}")
