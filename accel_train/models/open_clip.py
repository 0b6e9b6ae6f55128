"""Checkpoints of open_clip and of OpenAI's CLIP: the standard model with a ViT and a causal text transformer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPConfig, PretrainedConfig

from accel_train.errors import UserError
from accel_train.json_text import read_json
from accel_train.models.name_map import Renamed, clip_blocks, clip_vision, pairs, to_ours
from accel_train.models.overrides import make_config
from accel_train.models.shapes import SIXTEEN_HEADS, Shapes, apply_changes, fill_heads, vit_settings

OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers that stand among the weights in OpenAI's own files, and in no others."""

CONFIG_FILE = "open_clip_config.json"
"""open_clip's description of a model, beside the weights that it publishes."""


def names_for(config: PretrainedConfig) -> list[Renamed]:
    """Every weight of the original model that has the architecture of ours."""
    return [
        Renamed("logit_scale", ("logit_scale",)),
        *clip_vision(config.vision_config.num_hidden_layers),
        *clip_text(config.text_config.num_hidden_layers),
    ]


def clip_text(layers: int) -> list[Renamed]:
    """The text tower and its projection."""
    return [
        Renamed("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        Renamed("text_projection", ("text_projection.weight",), transposed=True),
        *clip_blocks("transformer", "text_model.encoder", layers),
        Renamed("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        *pairs("ln_final", "text_model.final_layer_norm"),
    ]


def read(
    weights: Mapping[str, Tensor], changes: dict[str, Any], source: str
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The architecture, and the weights under the names of transformers' CLIPModel (logit_scale 0-d).

    weights: names without `module.`. changes: `model.config`, for what shapes can't tell. source: the file.
    """
    activation = _activation(weights, source)
    weights = plain_layout(weights)
    config = architecture(weights, changes, source, activation)
    return config, to_ours(weights, names_for(config), source)


def read_into(config: PretrainedConfig, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names, for a model whose architecture is known."""
    return to_ours(plain_layout(weights), names_for(config), source)


def plain_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without OpenAI's numbers and the causal mask. Some of open_clip's models keep the text tower under `text.`."""
    dropped = {*OPENAI_SIZES, "attn_mask", "text.attn_mask"}
    return {name.removeprefix("text."): value for name, value in weights.items() if name not in dropped}


def architecture(
    weights: Mapping[str, Tensor], changes: dict[str, Any], source: str, activation: str | None
) -> PretrainedConfig:
    shapes = Shapes(weights, source)
    block = "transformer.resblocks."
    vocabulary = shapes.size("token_embedding.weight", 0)
    text = {
        "vocab_size": vocabulary,
        "hidden_size": shapes.size("token_embedding.weight", 1),
        "max_position_embeddings": shapes.size("positional_embedding", 0),
        "num_hidden_layers": shapes.count(block, ".ln_1.weight"),
        "intermediate_size": shapes.size(f"{block}0.mlp.c_fc.weight", 0),
    }
    vision = vit_settings(shapes)
    found = {"vision_config": vision, "text_config": text, "projection_dim": shapes.size("text_projection", 1)}
    settings = apply_changes(found, changes, CLIPConfig(), source)
    fill_heads(settings["vision_config"], "vision_config", SIXTEEN_HEADS)
    fill_heads(settings["text_config"], "text_config")
    # open_clip takes a text's feature from the largest token id, which its tokenizer puts at the end.
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    settings["text_config"] = tokens | settings["text_config"]
    for tower in ("vision_config", "text_config"):
        if "hidden_act" not in settings[tower]:
            settings[tower]["hidden_act"] = activation or _refuse_to_guess(source)
    return make_config(CLIPConfig, settings, "model.config")


def _activation(weights: Mapping[str, Tensor], source: str) -> str | None:
    """quick_gelu or gelu where the file or open_clip's configuration beside it tells them apart."""
    if all(name in weights for name in OPENAI_SIZES):
        return "quick_gelu"
    description = Path(source).with_name(CONFIG_FILE)
    if not description.is_file():
        return None
    try:
        model = read_json(description.read_text(encoding="utf-8"))["model_cfg"]
        return "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{description} is not a configuration of open_clip: {error!r}.") from error


def _refuse_to_guess(source: str) -> str:
    raise UserError(
        f"model.config must say hidden_act: the weights in {source} don't show which activation they were trained with, "
        "and features are wrong under the other. quick_gelu for OpenAI's weights and models named -quickgelu, gelu for "
        f"open_clip's others; or put {CONFIG_FILE} beside the file. Set model.config.vision_config.hidden_act and "
        "model.config.text_config.hidden_act."
    )
