"""From a YAML file and overrides to a checked configuration, and back. All mistakes are reported at once."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from accel_train.config.explain import explain
from accel_train.config.overrides import apply_overrides
from accel_train.config.rules import check_rules
from accel_train.config.schema import RunConfig
from accel_train.config.secrets import secrets_in, secrets_in_overrides
from accel_train.config.tasks import config_class
from accel_train.config.yaml_text import read_yaml, write_yaml
from accel_train.errors import UserError
from accel_train.interrupts import uninterrupted

ABSENT = "(absent)"
"""Stands in `config_changes` for a key that only one of the two configurations has."""


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Reads a configuration file and applies `section.key=value` overrides.

    Raises UserError with one line for each mistake: of the file, of an override, of a value's type or range, or, once
    those are right, of keys that contradict each other.
    """
    values = read_mapping(Path(path))
    if "search" in values:
        raise UserError(
            f"{path}: search: this is a sweep, which only `accel-train sweep {path}` takes. A sweep is a file of its own, "
            "whose `config` names the configuration that is searched; that one is what every other command takes.",
            code="AT103",
        )
    return check_config(values, overrides, str(path))


def check_config(values: dict[str, Any], overrides: list[str] | tuple[str, ...], source: str) -> RunConfig:
    """The configuration that a mapping and overrides make. Changes `values`. Raises UserError as `load_config` does."""
    secrets = [*secrets_in_overrides(list(overrides)), *secrets_in(values)]
    if secrets:  # alone: other messages would show values
        raise _as_error(source, secrets, "AT102")
    problems = apply_overrides(values, list(overrides))
    code = "AT100"
    try:
        root = config_class(values)
        with uninterrupted():  # pydantic takes an exception that a signal raises in a validator for a wrong value
            config = root.model_validate(values)
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), values, root)
    except ValueError as error:
        problems.append(str(error))
    else:
        if not problems:
            code = "AT101"
        problems += check_rules(config)
    if problems:
        raise _as_error(source, problems, code)
    return config


def _as_error(source: str, problems: list[str], code: str) -> UserError:
    count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    return UserError(
        f"{source}: {count}\n" + "\n".join(f"  {_on_one_line(problem)}" for problem in problems), code=code
    )


def _on_one_line(text: str) -> str:
    """What a key may hold and a line may not, such as a carriage return, as Python writes it."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping, as it stands. Raises UserError."""
    try:
        values = read_yaml(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: can't be read: {error.strerror}. Give the path of a configuration file.", code="AT103"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8. Save the file as UTF-8.", code="AT103") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}", code="AT103") from error
    if values is None:
        raise UserError(
            f"{path}: the file is empty. It must hold the sections of a configuration; see configs/.", code="AT103"
        )
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: found a {type(values).__name__}; a configuration is a mapping of `key: value` lines.",
            code="AT103",
        )
    return values


def dump_config(config: RunConfig) -> str:
    """YAML with every key, defaults included. `load_config` of it gives an equal configuration."""
    return write_yaml(config.model_dump())


def config_changes(old: RunConfig | dict[str, Any], new: RunConfig | dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(path, old value, new value) of every key that differs, in order. Towers are told apart by name."""
    before, after = leaves(_plain(old)), leaves(_plain(new))
    paths = dict.fromkeys([*before, *after])
    pairs = [(path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in paths]
    return [(path, was, now) for path, was, now in pairs if was != now]


def _plain(config: RunConfig | dict[str, Any]) -> dict[str, Any]:
    return config.model_dump() if isinstance(config, RunConfig) else config


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value. Lists of sections are opened, lists of plain values are values."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {item.get("name", index): item for index, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): value}
    return {path: leaf for key, inner in value.items() for path, leaf in leaves(inner, f"{prefix}{key}.").items()}
