"""Checkpoints of the original Chinese-CLIP trainer (OFA-Sys/Chinese-CLIP): its names, and what its shapes say.

The tables list weights in the order of the original's named_parameters(), which its optimizer states go by.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import ChineseCLIPConfig, PretrainedConfig

from accel_train.models.chinese_clip_resnet import ChineseCLIPResNetConfig
from accel_train.models.cn_clip_config import described_beside
from accel_train.models.modified_resnet import REDUCTION, fill_resnet_heads
from accel_train.models.name_map import Renamed, clip_vision, pairs, split_pairs, to_ours
from accel_train.models.overrides import make_config
from accel_train.models.shapes import SIXTEEN_HEADS, Shapes, apply_changes, fill_heads, vit_settings

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names(vision_layers: int | Sequence[int], text_layers: int, *, fused_text: bool = False) -> list[Renamed]:
    """Every weight of the original model.

    vision_layers: blocks of a ViT, or of each stage of a ResNet. fused_text: the original's model under flash attention,
    whose BERT holds query, key and value in one tensor.
    """
    vision = clip_vision(vision_layers) if isinstance(vision_layers, int) else resnet(vision_layers)
    return [
        Renamed("text_projection", ("text_projection.weight",), transposed=True),
        Renamed("logit_scale", ("logit_scale",)),
        *vision,
        *bert(text_layers, fused=fused_text),
    ]


def names_for(config: PretrainedConfig, *, fused_text: bool = False) -> list[Renamed]:
    """The weights of the original model that has the architecture of ours."""
    settings = config.vision_config.to_dict()
    vision_layers = settings["depths"] if "depths" in settings else settings["num_hidden_layers"]
    return names(vision_layers, config.text_config.num_hidden_layers, fused_text=fused_text)


def bert(layers: int, *, fused: bool = False) -> list[Renamed]:
    table = [
        *(
            Renamed(f"bert.embeddings.{kind}_embeddings.weight", (f"text_model.embeddings.{kind}_embeddings.weight",))
            for kind in ("word", "position", "token_type")
        ),
        *pairs("bert.embeddings.LayerNorm", "text_model.embeddings.LayerNorm"),
    ]
    for number in range(layers):
        theirs, ours = f"bert.encoder.layer.{number}", f"text_model.encoder.layer.{number}"
        attention = ("query", "key", "value")
        if fused:
            table += split_pairs(f"{theirs}.attention.self.Wqkv", f"{ours}.attention.self", attention)
            table += pairs(f"{theirs}.attention.self.out_proj", f"{ours}.attention.output.dense")
        else:
            for part in attention:
                table += pairs(f"{theirs}.attention.self.{part}", f"{ours}.attention.self.{part}")
            table += pairs(f"{theirs}.attention.output.dense", f"{ours}.attention.output.dense")
        for part in ("attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"):
            table += pairs(f"{theirs}.{part}", f"{ours}.{part}")
    return table


def resnet(depths: Sequence[int]) -> list[Renamed]:
    table: list[Renamed] = []
    for number in (1, 2, 3):
        table += pairs(f"visual.conv{number}", f"vision_model.stem.conv{number}", ("weight",))
        table += pairs(f"visual.bn{number}", f"vision_model.stem.norm{number}", NORM)
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            theirs, ours = f"visual.layer{stage + 1}.{layer}", f"vision_model.stages.{stage}.layers.{layer}"
            for number in (1, 2, 3):
                table += pairs(f"{theirs}.conv{number}", f"{ours}.conv{number}", ("weight",))
                table += pairs(f"{theirs}.bn{number}", f"{ours}.norm{number}", NORM)
            if layer == 0:  # the number of channels changes in the first block of every stage
                table += pairs(f"{theirs}.downsample.0", f"{ours}.shortcut.conv", ("weight",))
                table += pairs(f"{theirs}.downsample.1", f"{ours}.shortcut.norm", NORM)
    table.append(Renamed("visual.attnpool.positional_embedding", ("vision_model.pool.position_embedding",)))
    for theirs, ours in (("k_proj", "k_proj"), ("q_proj", "q_proj"), ("v_proj", "v_proj"), ("c_proj", "out_proj")):
        table += pairs(f"visual.attnpool.{theirs}", f"vision_model.pool.{ours}")
    return table


def read(
    weights: Mapping[str, Tensor], changes: dict[str, Any], source: str
) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The architecture, and the weights under our names (logit_scale 0-d).

    weights: the original's names without `module.`. changes: `model.config`, for what shapes can't tell.
    """
    weights = plain_layout(weights)
    config = architecture(weights, changes, source)
    return config, to_ours(weights, names_for(config), source)


def read_into(config: PretrainedConfig, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under our names, for a model whose architecture is known."""
    return to_ours(plain_layout(weights), names_for(config), source)


def plain_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without BERT's pooler, which the original never uses, and without the renamings of its flash attention.

    That is FlashMHA of flash-attn 1: `Wqkv` holds query, key and value in this order, in both towers.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        fused = re.fullmatch(r"(bert\..*\.self)\.Wqkv\.(weight|bias)", name)
        if name.startswith("bert.pooler.") or name.endswith("position_ids"):
            continue
        if fused and len(value) % 3 == 0:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{fused[1]}.{part}.{fused[2]}"] = third
            continue
        name = re.sub(r"^(visual\..*\.attn)\.Wqkv\.", r"\1.in_proj_", name)
        name = re.sub(r"^(bert\..*\.attention)\.self\.out_proj\.", r"\1.output.dense.", name)
        found[name] = value
    return found


def architecture(weights: Mapping[str, Tensor], changes: dict[str, Any], source: str) -> PretrainedConfig:
    """The configuration of ChineseCLIPModel or, where the image tower is a ResNet, of ChineseCLIPResNetModel."""
    shapes = Shapes(weights, source)
    is_resnet = "visual.attnpool.positional_embedding" in weights
    config_class = ChineseCLIPResNetConfig if is_resnet else ChineseCLIPConfig
    found: dict[str, Any] = {
        "vision_config": _resnet_settings(shapes) if is_resnet else vit_settings(shapes),
        "text_config": _bert_settings(shapes),
        "projection_dim": shapes.size("text_projection", 1),
    }
    described = described_beside(source, found["vision_config"], found["text_config"])
    changes = changes | {tower: told | changes.get(tower, {}) for tower, told in described.items()}
    settings = apply_changes(found, changes, config_class(), source)
    if is_resnet:
        fill_resnet_heads(settings["vision_config"])
    else:
        fill_heads(settings["vision_config"], "vision_config", SIXTEEN_HEADS)
    fill_heads(settings["text_config"], "text_config")
    return make_config(config_class, settings, "model.config")


def _bert_settings(shapes: Shapes) -> dict[str, Any]:
    layer = "bert.encoder.layer."
    return {
        "vocab_size": shapes.size("bert.embeddings.word_embeddings.weight", 0),
        "hidden_size": shapes.size("bert.embeddings.word_embeddings.weight", 1),
        "max_position_embeddings": shapes.size("bert.embeddings.position_embeddings.weight", 0),
        "type_vocab_size": shapes.size("bert.embeddings.token_type_embeddings.weight", 0),
        "num_hidden_layers": shapes.count(layer, ".output.dense.weight"),
        "intermediate_size": shapes.size(f"{layer}0.intermediate.dense.weight", 0),
    }


def _resnet_settings(shapes: Shapes) -> dict[str, Any]:
    width = shapes.size("visual.layer1.0.conv1.weight", 0)
    return {
        "width": width,
        "depths": [shapes.count(f"visual.layer{stage}.", ".conv1.weight") for stage in (1, 2, 3, 4)],
        "image_size": REDUCTION * shapes.grid("visual.attnpool.positional_embedding"),
    }
