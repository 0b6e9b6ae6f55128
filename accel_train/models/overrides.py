"""Changes to an architecture's configuration, checked against what that configuration knows."""

import difflib
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from accel_train.errors import UserError


def make_config(config_class: type[PretrainedConfig], settings: dict[str, Any], where: str) -> PretrainedConfig:
    """The configuration object, or a UserError that names `where` (a key path) and what it refuses."""
    try:
        return config_class(**settings)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {config_class.__name__} refuses these values. {' '.join(str(error).split())}"
        ) from error


def merge(settings: dict[str, Any], changes: dict[str, Any], known: PretrainedConfig, where: str) -> dict[str, Any]:
    """`settings` with `changes` on top, mapping by mapping; keys that `known` lacks are errors.

    known: a configuration of the same kind, whose attributes say which keys exist.
    """
    names = architecture_keys(known)
    merged = dict(settings)
    for key, value in changes.items():
        path = f"{where}.{key}"
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1)
            hint = f" Nearest: {nearest[0]}." if nearest else ""
            raise UserError(f"{path}: {known.model_type} has no such setting.{hint} Known: {', '.join(names)}.")
        if isinstance(names[key], PretrainedConfig):
            if not isinstance(value, dict):
                raise UserError(f"{path} is {value!r}, but must be a mapping of settings.")
            value = merge(merged.get(key, {}), value, names[key], path)
        merged[key] = value
    return merged


def architecture_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What a configuration says of the architecture, without the entries that every configuration of transformers has."""
    general = PretrainedConfig().to_dict()
    names = sorted(set(config.to_dict()) - set(general) - {"model_type"})
    return {name: vars(config).get(name) for name in names}
