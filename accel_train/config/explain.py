"""pydantic's errors in the user's words: the key's path, the value found, the rule, and what was probably meant."""

import difflib
import re
from typing import Any

from pydantic_core import ErrorDetails

from accel_train.config.key_names import Path, nearest_keys, section_at, tags_at
from accel_train.config.schema import Section

_SHOWN = 60
"""Characters of a value that a message shows."""

_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "text in valid Unicode",
    "list_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "interval": "like '500 steps' or '1 epoch'",
    "string_pattern_mismatch": "lower-case letters, digits and _, a letter first",
}


def explain(errors: list[ErrorDetails], values: dict[str, Any], root: type[Section]) -> list[str]:
    """One line for each thing that is wrong. `values` is the mapping that was checked against `root`."""
    unknown: list[Path] = []
    missing: list[tuple[Path, str]] = []
    rules: dict[Path, list[str]] = {}
    for error in errors:
        path = _path(error, values)
        if error["type"] == "extra_forbidden":
            unknown.append(path)
        elif error["type"] == "missing":
            missing.append((path, section_at(path[:-1], values, root).model_fields[str(path[-1])].description or ""))
        elif error["type"] == "union_tag_not_found":
            missing.append((path, f"One of {', '.join(tags_at(path[:-1], values, root))}."))
        else:
            rules.setdefault(path, []).append(_rule(error, path, values, root))
    meant: set[str] = set()
    lines = []
    for path in unknown:
        section = section_at(path[:-1], values, root)
        near = nearest_keys(str(path[-1]), section, dotted(path[:-1], values), root)
        meant.update(near)
        kind = f" with type {section_type}" if (section_type := value_at(path[:-1], values).get("type")) else ""
        hint = f"Nearest: {' or '.join(near)}." if near else f"Keys of this section: {', '.join(section.model_fields)}."
        lines.append(f"{dotted(path, values)}: no such key{kind} (found {show(value_at(path, values))}). {hint}")
    for path, doc in missing:
        if dotted(path, values) not in meant:  # else it is there under a wrong name: one mistake, one line
            lines.append(f"{dotted(path, values)}: missing, and it has no default. {doc}".strip())
    for path, wanted in rules.items():
        # Where one alternative of a union came further than another, its complaint is the useful one.
        if not any(other != path and other[: len(path)] == path for other in rules):
            rule = " or ".join(dict.fromkeys(wanted))
            lines.append(f"{dotted(path, values)}: found {show(value_at(path, values))}; it must be {rule}.")
    return lines


def dotted(path: Path, values: Any) -> str:
    """A path as an override writes it, with list items by their name where they have one."""
    parts = []
    for part in path:
        values = values[part] if _holds(values, part) else None
        name = values.get("name") if isinstance(part, int) and isinstance(values, dict) else None
        parts.append(name if isinstance(name, str) and name.isidentifier() else str(part))
    return ".".join(parts)


def show(value: Any) -> str:
    """A value in YAML's words, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def value_at(path: Path, values: Any) -> Any:
    """The value at a path that exists."""
    for part in path:
        values = values[part]
    return values


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, dict):
        return part in values
    return isinstance(values, list) and isinstance(part, int) and part < len(values)


def _path(error: ErrorDetails, values: Any) -> Path:
    """pydantic's location as a path of the file: without the names of union members, and down to a union's tag."""
    path: list[str | int] = []
    for index, part in enumerate(error["loc"]):
        if index and isinstance(values, dict) and part == values.get("type") and part not in values:
            continue  # the tag of a union's member
        if _holds(values, part):
            values = values[part]
        elif error["type"] != "missing":
            continue  # a member of a union of plain types, such as `list[str]`
        path.append(part)
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append("type")
    return tuple(path)


def _rule(error: ErrorDetails, path: Path, values: dict[str, Any], root: type[Section]) -> str:
    """What the value must be, to follow "it must be"."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "union_tag_invalid":
        return _one_of(tags_at(path[:-1], values, root), context["tag"])
    if kind == "literal_error":
        return _one_of(re.findall(r"'([^']*)'", context["expected"]), error["input"])
    if kind in ("too_short", "too_long"):
        length = context.get("min_length", context.get("max_length"))
        return "a list with at least one item" if length == 1 else f"a list of {length} values"
    rule = _RULES.get(kind)
    if rule is None:
        return f"such that: {error['msg']}"
    return rule.format(**{name: f"{limit:.12g}" for name, limit in context.items() if isinstance(limit, (int, float))})


def _one_of(allowed: list[str], found: Any) -> str:
    near = difflib.get_close_matches(str(found).lower(), allowed, n=1, cutoff=0.5)
    return f"one of {', '.join(allowed)}" + (f". Nearest: {near[0]}" if near else "")
