"""A run's configuration as rows: each key with its value and its default, and what differs between runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from accel_train.config.load import ABSENT, check_config, leaves, read_mapping
from accel_train.config.schema import RunConfig
from accel_train.errors import UserError

NO_DEFAULT = "(none)"
PLACE = ("run_dir",)
"""Keys that say where a run is, not what it is."""


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    value: Any
    default: Any
    """NO_DEFAULT for a key that must be given, or that only this run's sections have."""

    @property
    def is_default(self) -> bool:
        return bool(self.value == self.default)


@dataclass(frozen=True, slots=True)
class Settings:
    values: dict[str, Any]
    """As config.yaml holds them."""
    config: RunConfig | None
    """None if this version does not take them, as `complaint` says."""
    complaint: str

    @property
    def leaves(self) -> dict[str, Any]:
        """Dotted key -> value."""
        return leaves(self.values)


def read_settings(path: Path) -> Settings:
    """Raises UserError if the file can't be read at all."""
    values = read_mapping(path)
    try:
        config = check_config(read_mapping(path), (), str(path))
    except UserError as error:
        return Settings(values, None, str(error))
    return Settings(values, config, "")


def rows_of(config: RunConfig) -> list[Setting]:
    """Every key of a configuration, in its order."""
    return list(_rows(config, ""))


def _rows(section: BaseModel, prefix: str) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, default = vars(section)[name], field.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            default = NO_DEFAULT
        key = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from _rows(value, f"{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, BaseModel) for item in value):
            for index, item in enumerate(value):
                yield from _rows(item, f"{key}.{vars(item).get('name', index)}.")
        elif isinstance(value, dict) and value:
            own = default if isinstance(default, dict) else {}
            yield from (
                Setting(path, leaf, own.get(path, NO_DEFAULT)) for path, leaf in leaves(value, f"{key}.").items()
            )
        else:
            yield Setting(key, value, default)


def differences(all_leaves: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Keys that are not the same in all runs, each with every run's value; where a run lacks a key, ABSENT."""
    keys = dict.fromkeys(key for own in all_leaves for key in own)
    rows = [(key, [own.get(key, ABSENT) for own in all_leaves]) for key in keys if key not in PLACE]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values[1:])]


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
