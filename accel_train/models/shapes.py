"""What the shapes of a checkpoint's weights say of its architecture, and the original projects' rules for the rest."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from accel_train.errors import UserError
from accel_train.models.overrides import merge

HEAD_WIDTH = 64
"""Channels of one attention head in CLIP and BERT alike (Radford et al. 2021; Devlin et al. 2019)."""

SIXTEEN_HEADS = (1280, 1408, 1664, 1792)
"""Widths of the image towers ViT-H, -g, -bigG and -e, which have 16 wider heads in Chinese-CLIP and open_clip."""


class Shapes:
    """The shapes of weights by name. A name that is missing is a UserError that begins with `source`."""

    def __init__(self, weights: Mapping[str, Tensor], source: str) -> None:
        self.weights, self.source = weights, source

    def size(self, name: str, dimension: int) -> int:
        if name not in self.weights:
            raise UserError(
                f"{self.source} has no {name}, so it is not a model of the kind that its other names suggest."
            )
        shape = self.weights[name].shape
        if dimension >= len(shape):
            raise UserError(
                f"{self.source}: {name} has shape {tuple(shape)}, and {dimension + 1} dimensions are needed."
            )
        return int(shape[dimension])

    def grid(self, name: str) -> int:
        """Patches in a row of the image, from position embeddings of all patches and a class token."""
        positions = self.size(name, 0)
        if positions < 2 or math.isqrt(positions - 1) ** 2 != positions - 1:
            raise UserError(f"{self.source}: {name} has {positions} positions, not those of a square grid and a token.")
        return math.isqrt(positions - 1)

    def count(self, before: str, after: str) -> int:
        """How many names there are of the form `before` NUMBER `after`."""
        return len(self.numbers(rf"{re.escape(before)}(\d+){re.escape(after)}"))

    def numbers(self, pattern: str) -> set[int]:
        return {int(found[1]) for name in self.weights if (found := re.fullmatch(pattern, name))}


def vit_settings(shapes: Shapes) -> dict[str, Any]:
    """Configuration of CLIP's ViT tower under the names of the original."""
    patch = shapes.size("visual.conv1.weight", 2)
    block = "visual.transformer.resblocks."
    return {
        "hidden_size": shapes.size("visual.conv1.weight", 0),
        "patch_size": patch,
        "image_size": patch * shapes.grid("visual.positional_embedding"),
        "num_hidden_layers": shapes.count(block, ".ln_1.weight"),
        "intermediate_size": shapes.size(f"{block}0.mlp.c_fc.weight", 0),
    }


def apply_changes(
    settings: dict[str, Any], changes: dict[str, Any], known: PretrainedConfig, source: str
) -> dict[str, Any]:
    """What shapes say, with `model.config` on top. Raises UserError for unknown keys and for what contradicts a shape."""
    _refuse_contradictions(settings, changes, source, "model.config")
    return merge(settings, changes, known, "model.config")


def _refuse_contradictions(settings: dict[str, Any], changes: dict[str, Any], source: str, where: str) -> None:
    for key, value in changes.items():
        path, found = f"{where}.{key}", settings.get(key)
        if isinstance(found, dict) and isinstance(value, dict):
            _refuse_contradictions(found, value, source, path)
        elif found is not None and found != value:
            raise UserError(f"{path} is {value!r}, but the weights in {source} have {found!r}. Take it out.")


def fill_heads(section: dict[str, Any], key: str, exceptions: Iterable[int] = ()) -> None:
    """Sets num_attention_heads by the original's rule where nobody said it. `key` names the section in errors."""
    width = section["hidden_size"]
    if "num_attention_heads" in section:
        return
    if width in exceptions:
        section["num_attention_heads"] = 16
    elif width % HEAD_WIDTH:
        raise UserError(
            f"model.config.{key}.num_attention_heads must be given: weights don't show it, and a width of {width} is not "
            f"a multiple of {HEAD_WIDTH}, the original's width of a head."
        )
    else:
        section["num_attention_heads"] = width // HEAD_WIDTH
