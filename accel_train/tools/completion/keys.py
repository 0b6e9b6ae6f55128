"""Configuration keys of each task with the values that they can name, kept in a cache: reading the classes is slow."""

import hashlib
import json
import os
import types
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import accel_train

CONFIG_FOLDER = Path(accel_train.__file__).parent / "config"
Keys = dict[str, list[str]]
"""Dotted path, with * for an item of a list, and the values that can be named; none for numbers, paths and the like."""


def keys_of(task: str) -> Keys:
    """Of a built-in task; for a class of one's own the keys that every task has."""
    found = _cached() or _read_classes()
    return found.get(task, found[""])


def cache_file() -> Path:
    """Named after the state of the configuration's classes, so that another version has another file."""
    stamps = [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(CONFIG_FOLDER.glob("*.py"))]
    digest = hashlib.blake2b("\n".join([str(CONFIG_FOLDER), *stamps]).encode(), digest_size=8).hexdigest()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "accel_train" / f"keys-{digest}.json"


def _cached() -> dict[str, Keys] | None:
    try:
        found: dict[str, Keys] = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _read_classes() -> dict[str, Keys]:
    from accel_train.config.schema import RunConfig
    from accel_train.config.tasks import BUILT_IN

    found = {name: dict(_walk(root, "")) for name, root in {"": RunConfig, **BUILT_IN}.items()}
    path = cache_file()
    aside = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # a home that can't be written: then each time anew
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(found), encoding="utf-8")
        aside.replace(path)
        for old in path.parent.glob("keys-*.json"):
            if old != path:
                old.unlink(missing_ok=True)
    return found


def _walk(section: Any, prefix: str) -> list[tuple[str, list[str]]]:
    from accel_train.config.key_names import sections_in

    found: list[tuple[str, list[str]]] = []
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        is_list = get_origin(field.annotation) is list
        values = _values(field.annotation)
        if not inner or (values and not is_list):  # a section that may be null is a value too
            found.append((prefix + name, values))
        for one in inner:
            found += _walk(one, f"{prefix}{name}{'.*' if is_list else ''}.")
    return found


def _values(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [value for part in get_args(annotation) for value in _values(part)]
    return []
