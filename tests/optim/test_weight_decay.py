"""The original Chinese-CLIP rule, on transformers' names."""

import pytest
import torch
from transformers import ChineseCLIPConfig, ChineseCLIPModel

from accel_train.errors import UserError
from accel_train.optim.weight_decay import cn_clip_name, exempt_in_chinese_clip

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

BLOCK_NAMES = {  # transformers: the original
    "self_attn.q_proj.weight": "attn.in_proj_weight",
    "self_attn.k_proj.bias": "attn.in_proj_bias",
    "self_attn.out_proj.weight": "attn.out_proj.weight",
    "layer_norm1.weight": "ln_1.weight",
    "layer_norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
}


@pytest.fixture(scope="module")
def names() -> list[str]:
    with torch.device("meta"):
        model = ChineseCLIPModel(ChineseCLIPConfig(text_config=SIZES, vision_config=SIZES))
    return [name for name, _ in model.named_parameters()]


def test_names_of_the_original() -> None:
    for ours, original in BLOCK_NAMES.items():
        assert cn_clip_name(f"vision_model.encoder.layers.11.{ours}") == f"visual.transformer.resblocks.11.{original}"
    assert cn_clip_name("vision_model.embeddings.patch_embedding.weight") == "visual.conv1.weight"
    assert cn_clip_name("vision_model.embeddings.position_embedding.weight") == "visual.positional_embedding"
    assert cn_clip_name("visual_projection.weight") == "visual.proj"
    assert (
        cn_clip_name("text_model.encoder.layer.3.attention.output.LayerNorm.weight")
        == "bert.encoder.layer.3.attention.output.LayerNorm.weight"
    )


def test_what_the_rule_exempts(names: list[str]) -> None:
    """Every bias, the image tower's norms and logit_scale; not the text tower's LayerNorm weights."""
    expected = {
        name
        for name in names
        if name.endswith("bias")
        or name == "logit_scale"
        or (name.startswith("vision_model") and ("layer_norm" in name or "layrnorm" in name or "layernorm" in name))
    }
    assert {name for name in names if exempt_in_chinese_clip(name)} == expected


def test_what_the_rule_decays_against_common_sense() -> None:
    assert not exempt_in_chinese_clip("text_model.embeddings.LayerNorm.weight")
    assert not exempt_in_chinese_clip("vision_model.embeddings.class_embedding")


def test_a_map_to_the_teachers_width_decays() -> None:
    assert not exempt_in_chinese_clip("teacher_projection.weight")


@pytest.mark.parametrize("name", ["vision_model.encoder.stages.0.layers.0.dwconv.weight", "logit_bias", "head.weight"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"Use no_decay: vectors"):
        exempt_in_chinese_clip(name)
