from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertForMaskedLM

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.dual_encoder import TextPooling


def test_parameters_carry_the_backbones_own_names(tiny, make_config) -> None:
    model = build_contrastive_model(make_config(tiny["convnext"]))
    for attribute, backbone in (("vision_model", "convnext"), ("text_model", "bert")):
        section = tiny["convnext"]["image" if backbone == "convnext" else "text"]["config"]
        plain = AutoModel.from_config(AutoConfig.for_model(backbone, **section))
        own = {name for name, _ in getattr(model, attribute).named_parameters()}
        assert own == {name for name, _ in plain.named_parameters() if not name.startswith("pooler.")}
    others = {name for name, _ in model.named_parameters() if not name.startswith(("vision_model.", "text_model."))}
    assert others == {"text_pooling.query", "visual_projection.weight", "text_projection.weight", "logit_scale"}


@pytest.mark.parametrize("kind", ["attention", "mean", "cls"])
def test_text_pooling_equals_a_loop_over_the_tokens(kind: str) -> None:
    pooling = TextPooling(kind, 8)
    tokens, lengths = torch.randn(3, 5, 8), [5, 1, 3]
    mask = torch.tensor([[1] * length + [0] * (5 - length) for length in lengths])
    found = pooling(tokens, mask)
    for row, length in enumerate(lengths):
        real = tokens[row, :length]
        weights = torch.full((length,), 1 / length)
        if kind == "attention":
            weights = (real @ pooling.query[0] / 8**0.5).softmax(0)
        elif kind == "cls":
            weights = torch.eye(length)[0]
        torch.testing.assert_close(found[row], weights @ real)


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet", "dinov2"])
def test_image_features_are_those_of_the_plain_backbone(name, tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny[name])).eval()
    pixels = (batch["pixel_values"] / 255 - model.pixel_mean) / model.pixel_std
    output = model.vision_model(pixel_values=pixels)
    if name in ("vit", "dinov2"):
        vector = output.last_hidden_state[:, 0]
    elif name == "convnext":
        vector = model.vision_model.layernorm(output.last_hidden_state.mean((2, 3)))
    else:
        vector = output.last_hidden_state.mean((2, 3))
    expected = torch.nn.functional.normalize(model.visual_projection(vector), dim=-1)
    torch.testing.assert_close(model(batch)["image_features"], expected)


def test_backbones_from_folders(tiny, make_config, batch, tmp_path: Path) -> None:
    """A text folder of masked language modelling is fine: its head is left, its pooler (if unused) not missed."""
    torch.manual_seed(0)
    text = BertForMaskedLM(BertConfig(**tiny["vit"]["text"]["config"]))
    text.save_pretrained(tmp_path / "text")
    image = AutoModel.from_config(AutoConfig.for_model("vit", image_size=32, **tiny["vit"]["image"]["config"]))
    image.save_pretrained(tmp_path / "image")
    section = {
        "type": "dual_encoder",
        "image": {"pretrained": str(tmp_path / "image")},
        "text": {"pretrained": str(tmp_path / "text")},
    }
    model = build_contrastive_model(make_config(section))
    for ours, theirs in ((model.vision_model, image), (model.text_model, text.bert)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    with pytest.raises(UserError, match=r"missing: pooler.dense"):
        build_contrastive_model(make_config(section | {"text_pooling": "pooler"}))
    with pytest.raises(UserError, match=r"model.image takes images of 32 px. Set data.image_size=32"):
        build_contrastive_model(make_config(section, image_size=64))


@pytest.mark.parametrize(
    ("tower", "backbone", "message"),
    [
        (
            "image",
            {"architecture": "convnet"},
            "model.image.architecture: transformers knows no 'convnet'. Nearest: conv",
        ),
        ("image", {"architecture": "bert"}, "model.image: bert is not an image model"),
        ("text", {"architecture": "vit"}, "model.text: vit is not a text model"),
        ("text", {"architecture": "bert", "config": {"num_layers": 2}}, "model.text.config.num_layers.*Nearest: num_"),
        ("image", {"architecture": "vit", "config": {"patch_size": 7}}, "not a multiple of the patch size 7"),
        ("image", {"architecture": "vit", "config": {"image_size": 64}}, "Set data.image_size=64"),
        (
            "text",
            {"architecture": "bert", "config": {"max_position_embeddings": 8}},
            "model.text reads 8 tokens at most",
        ),
        ("text", {"pretrained": "/nowhere"}, "model.text.pretrained: /nowhere is not a folder"),
    ],
)
def test_wrong_backbones_are_named(tower, backbone, message, tiny, make_config) -> None:
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(tiny["vit"] | {tower: backbone}))


def test_a_text_model_without_a_pooler_can_not_be_pooled_by_it(tiny, make_config) -> None:
    text = {"architecture": "distilbert", "config": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}}
    with pytest.raises(UserError, match="text_pooling is pooler, but distilbert has none"):
        build_contrastive_model(make_config(tiny["vit"] | {"text": text, "text_pooling": "pooler"}))
