"""The original Chinese-CLIP's description of a model, where it lies beside a checkpoint file."""

from pathlib import Path
from typing import Any

from accel_train.errors import UserError
from accel_train.json_text import read_json

CONFIG_FILE = "model_config.json"
"""The original's vision and text configurations in one file, under the names that its model builder takes."""

TEXT_KEYS = ("num_attention_heads", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")
"""Of the text tower, what shapes don't show; `text_` stands before each."""


def described_beside(source: str, vision: dict[str, Any], text: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the file beside `source` says of both towers beyond shapes: heads, activation, dropout. {} without a file.

    vision, text: what the shapes say. Raises UserError for a file that can't be read or describes another model.
    """
    file = Path(source).with_name(CONFIG_FILE)
    if not file.is_file():
        return {}
    try:
        told = read_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(told, dict):
        raise UserError(f"{file} holds a {type(told).__name__}; it must be an object of the original's keys.")
    shapes = {"text_hidden_size": text["hidden_size"]}
    if "hidden_size" in vision:  # a ViT
        shapes["vision_width"] = vision["hidden_size"]
    for key, found in shapes.items():
        if told.get(key, found) != found:
            raise UserError(
                f"{file} describes another model: {key} is {told[key]!r}, and the weights in {source} have {found}. Take "
                "the file away, or put the right one beside the weights."
            )
    described = {"text_config": {key: told[f"text_{key}"] for key in TEXT_KEYS if f"text_{key}" in told}}
    head_width = told.get("vision_head_width", 0)
    if "hidden_size" in vision and isinstance(head_width, int) and head_width > 0:
        described["vision_config"] = {"num_attention_heads": vision["hidden_size"] // head_width}
    return described
