"""Named layer lists against the installed transformers: every parameter is covered and each layer has its number."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from accel_train.config.schema import OptimizerSection, Tower
from accel_train.models.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from accel_train.optim.layers import LAYER_LISTS
from accel_train.optim.param_groups import plan_groups
from accel_train.optim.towers import assign

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TIMM_LR_SCALES = json.loads((Path(__file__).parent / "timm_lr_scales.json").read_text())
"""lr_scale of each parameter at layer_decay 0.75, from timm 1.0.31's param_groups_layer_decay for a ViT of depth 4, a
ConvNeXt and a ResNet (Bottleneck) of depths 2, 1, 3, 2, under the names that transformers gives the same parameters."""


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def bert(num_layers: int) -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**SMALL, num_hidden_layers=num_layers))


def vit() -> nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SMALL, num_hidden_layers=4))


def dinov2() -> nn.Module:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4}
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))


def convnext() -> nn.Module:
    return transformers.ConvNextModel(transformers.ConvNextConfig(depths=[2, 1, 3, 2], hidden_sizes=[8, 16, 24, 32]))


def resnet() -> nn.Module:
    sizes = {"depths": [2, 1, 3, 2], "hidden_sizes": [8, 16, 24, 32], "embedding_size": 4}
    return transformers.ResNetModel(transformers.ResNetConfig(**sizes))


def clip_resnet() -> nn.Module:
    return ModifiedResNet(ModifiedResNetConfig(width=4, depths=[2, 1, 3, 2], num_attention_heads=4), projection_dim=8)


def llama() -> nn.Module:
    sizes = {**SMALL, "num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 50, "pad_token_id": 0}
    config = transformers.LlamaConfig(**sizes, bos_token_id=1, eos_token_id=2)
    return transformers.LlamaForSequenceClassification(config)


def clip_like(kind: str) -> nn.Module:
    sizes = {**SMALL, "num_hidden_layers": 4}
    text_sizes = {**sizes, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision_sizes = {**sizes, "image_size": 32, "patch_size": 16}
    config_class, model_class = {
        "clip": (transformers.CLIPConfig, transformers.CLIPModel),
        "chinese_clip": (transformers.ChineseCLIPConfig, transformers.ChineseCLIPModel),
        "siglip": (transformers.SiglipConfig, transformers.SiglipModel),
    }[kind]
    return model_class(config_class(text_config=text_sizes, vision_config=vision_sizes))


def layers_of(model: nn.Module, *towers: Tower) -> dict[str, int]:
    """The layer number of every parameter; fails for a parameter that no tower covers."""
    names = [name for name, _ in model.named_parameters()]
    return {name: place.layer for name, place in assign(names, towers).items()}


def tower(layers: str | list[str], **values: float) -> Tower:
    return Tower(name="tower", layers=layers, **{"lr": 1.0, **values})


BACKBONES = {  # (layer list, bare model, layer number of each name; stem 0)
    "bert": (lambda: bert(12), {"embeddings.LayerNorm.bias": 0, "encoder.layer.0.output.dense.bias": 1,
                                "encoder.layer.11.output.dense.bias": 12, "pooler.dense.weight": 12}),
    "vit": (vit, {"embeddings.cls_token": 0, "layers.0.mlp.fc1.weight": 1, "layers.3.mlp.fc1.weight": 4,
                  "layernorm.weight": 4}),
    "dinov2": (dinov2, {"embeddings.mask_token": 0, "encoder.layer.0.norm1.weight": 1,
                        "encoder.layer.3.layer_scale1.lambda1": 4, "layernorm.bias": 4}),
    "convnext": (convnext, {"embeddings.layernorm.weight": 0, "encoder.stages.0.layers.0.dwconv.weight": 1,
                            "encoder.stages.0.layers.1.dwconv.weight": 2,
                            "encoder.stages.1.downsampling_layer.0.weight": 3,
                            "encoder.stages.1.layers.0.dwconv.weight": 3,
                            "encoder.stages.2.downsampling_layer.1.bias": 4,
                            "encoder.stages.2.layers.2.dwconv.weight": 6,
                            "encoder.stages.3.layers.1.pwconv2.bias": 8, "layernorm.weight": 9}),
    "resnet": (resnet, {"embedder.embedder.convolution.weight": 0,
                        "encoder.stages.0.layers.0.shortcut.convolution.weight": 1,
                        "encoder.stages.0.layers.1.layer.0.convolution.weight": 2,
                        "encoder.stages.3.layers.1.layer.2.convolution.weight": 8}),
    "cn_clip_resnet": (clip_resnet, {"stem.conv1.weight": 0, "stages.0.layers.0.shortcut.norm.bias": 1,
                                     "stages.0.layers.1.conv3.weight": 2, "stages.1.layers.0.conv1.weight": 3,
                                     "stages.3.layers.1.norm3.weight": 8, "pool.position_embedding": 9,
                                     "pool.out_proj.weight": 9}),
    "llama": (llama, {"model.embed_tokens.weight": 0, "model.layers.0.mlp.up_proj.weight": 1,
                      "model.layers.3.mlp.up_proj.weight": 4, "model.norm.weight": 4, "score.weight": 5}),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_bare_backbone(name: str) -> None:
    build, expected = BACKBONES[name]
    found = layers_of(on_meta(build), tower(name))
    assert {key: found[key] for key in expected} == expected
    assert set(found.values()) == set(range(max(expected.values()) + 1))


@pytest.mark.parametrize(
    ("image", "text"), [("vit", "bert"), ("convnext", "bert"), ("resnet", "bert"), ("dinov2", "bert")]
)
def test_backbones_inside_a_dual_encoder(image: str, text: str) -> None:
    model = nn.ModuleDict({"text_model": on_meta(BACKBONES[text][0]), "vision_model": on_meta(BACKBONES[image][0])})
    names = [name for name, _ in model.named_parameters()]
    towers = [Tower(name="image", layers=image, lr=1.0), Tower(name="text", layers=text, lr=1.0)]
    places = assign(names, towers)
    assert {name: place.tower for name, place in places.items()} == {n: int(n.startswith("text_model.")) for n in names}
    for prefix, key in (("vision_model.", image), ("text_model.", text)):
        expected = BACKBONES[key][1]
        assert {name: places[prefix + name].layer for name in expected} == expected


@pytest.mark.parametrize("kind", ["clip", "chinese_clip", "siglip"])
def test_clip_models(kind: str) -> None:
    model = on_meta(lambda: clip_like(kind))
    heads = [pattern for pattern in ("projection", "^logit_") if kind != "siglip" or pattern != "projection"]
    image = Tower(name="image", layers=f"{kind}_image", lr=1.0)
    text = Tower(name="text", layers=f"{kind}_text", lr=1.0)
    found = layers_of(model, image, text, Tower(name="heads", layers=heads, lr=1.0))
    blocks = "text_model.encoder.layer" if kind == "chinese_clip" else "text_model.encoder.layers"
    for name, layer in found.items():
        if "embedding" in name or "pre_layrnorm" in name:
            assert layer == 0, name
        for number in range(4):
            if name.startswith((f"vision_model.encoder.layers.{number}.", f"{blocks}.{number}.")):
                assert layer == number + 1, name
    assert found["vision_model.post_layernorm.weight"] == 4
    if kind != "chinese_clip":
        assert found["text_model.final_layer_norm.weight"] == 4
    if kind == "siglip":
        assert found["text_model.head.weight"] == found["vision_model.head.probe"] == 5


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet"])
def test_rates_are_timms(name: str) -> None:
    """timm's depths are easily off by one: its ViT's norm learns with the last block, its ConvNeXt's with the head."""
    build = {
        "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, num_hidden_layers=4)),
        "convnext": lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(depths=[2, 1, 3, 2], hidden_sizes=[8, 16, 24, 32])
        ),
        "resnet": lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(depths=[2, 1, 3, 2], hidden_sizes=[8, 16, 24, 32], embedding_size=4)
        ),
    }
    plan = plan_groups(on_meta(build[name]), OptimizerSection(towers=[tower(name, layer_decay=0.75)]))
    rates = {param: group.lr for group in plan.groups for param in group.param_names}
    assert rates == pytest.approx(TIMM_LR_SCALES[name], rel=1e-12)


def test_bert_table() -> None:
    """The eight rates of a text tower whose last eight layers train, highest first."""
    written_out = [5.0e-5, 4.5e-5, 4.05e-5, 3.645e-5, 3.2805e-5, 2.95245e-5, 2.657205e-5, 2.3914845e-5]
    section = OptimizerSection(towers=[tower("bert", lr=5e-5, layer_decay=0.9, train_last=8)])
    plan = plan_groups(on_meta(lambda: bert(12)), section)
    by_param = {param: group.lr for group in plan.groups for param in group.param_names}
    for below_top, lr in enumerate(written_out):
        own = [rate for param, rate in by_param.items() if param.startswith(f"encoder.layer.{11 - below_top}.")]
        assert len(own) == 16
        assert own == pytest.approx([lr] * 16, rel=1e-12)
    assert by_param["pooler.dense.weight"] == pytest.approx(5e-5)
    assert len(plan.groups) == 8
    assert set(plan.frozen) == {
        name for name, _ in on_meta(lambda: bert(4)).named_parameters() if not name.startswith("pooler")
    }


def test_llama_table() -> None:
    written_out = {"model.embed_tokens": 0.03125, "model.layers.0": 0.0625, "model.layers.1": 0.125,
                   "model.layers.2": 0.25, "model.layers.3": 0.5, "model.norm": 0.5, "score": 1.0}  # fmt: skip
    plan = plan_groups(on_meta(llama), OptimizerSection(towers=[tower("llama", layer_decay=0.5)]))
    rates = {param: group.lr for group in plan.groups for param in group.param_names}
    assert {
        prefix: {rate for param, rate in rates.items() if param.startswith(f"{prefix}.")} for prefix in written_out
    } == {prefix: {rate} for prefix, rate in written_out.items()}


def test_every_list_has_a_test() -> None:
    tested = set(BACKBONES) | {
        f"{kind}_{side}" for kind in ("clip", "chinese_clip", "siglip") for side in ("image", "text")
    }
    assert tested == set(LAYER_LISTS)
