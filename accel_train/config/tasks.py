"""The configuration of each task, found by the name that `task:` holds."""

import difflib
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.config.schema import RunConfig
from accel_train.config.scorer import ScorerConfig
from accel_train.config.sequence_classification import SequenceClassificationConfig

BUILT_IN: dict[str, type[RunConfig]] = {
    "contrastive": ContrastiveConfig,
    "multimodal_alignment": MultimodalAlignmentConfig,
    "multimodal_llm": MultimodalLlmConfig,
    "scorer": ScorerConfig,
    "sequence_classification": SequenceClassificationConfig,
}
DEFAULT = "contrastive"
OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def config_class(values: dict[str, Any]) -> type[RunConfig]:
    """The configuration class of the task that a mapping names. Raises ValueError with a line for the user."""
    name = values.get("task", DEFAULT)
    if isinstance(name, str):
        if name in BUILT_IN:
            return BUILT_IN[name]
        if OWN_CLASS.fullmatch(name):
            found = own_class(name).config_class
            if isinstance(found, type) and issubclass(found, RunConfig):
                return found
            raise ValueError(f"task: {name}: its config_class is {found!r}; it must be RunConfig or a subclass of it.")
    near = difflib.get_close_matches(str(name), BUILT_IN, n=1)
    hint = f" Nearest: {near[0]}." if near else ""
    raise ValueError(
        f"task: found {name!r}; it must be one of {', '.join(BUILT_IN)}, or a class as package.module:Class.{hint}"
    )


def own_class(name: str) -> Any:
    """A user's task class. Modules beside the folder one works in are found. Raises ValueError if it can't be had."""
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = vars(importlib.import_module(module)).get(attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"task: {name}: the module {module} can't be imported ({error}).") from error
        raise ValueError(
            f"task: {name}: there is no module {error.name}, neither installed nor in {here}. Start the command in the "
            "folder that holds it, or add that folder to PYTHONPATH."
        ) from error
    except Exception as error:  # a user's module can fail in any way while it is imported
        raise ValueError(f"task: {name}: the module {module} can't be imported ({error!r}).") from error
    if not isinstance(found, type) or "config_class" not in dir(found):
        raise ValueError(f"task: {name}: {module} has no task class {attribute}; it must be a subclass of Task.")
    return found
