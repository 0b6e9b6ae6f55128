import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.export import load_pretrained_weights
from tests.models.originals import OpenCLIP, QuickGELU, saved, shaken

SAID = {"vision_config": {"hidden_act": "quick_gelu"}, "text_config": {"hidden_act": "quick_gelu"}}


def section(path: Path, **changes):
    return {"type": "clip", "pretrained": str(path)} | changes


@pytest.fixture
def original() -> nn.Module:
    torch.manual_seed(6)
    return shaken(OpenCLIP(QuickGELU()))


def save(model: nn.Module, folder: Path, kind: str) -> Path:
    """The file as open_clip's trainer, as its published weights, or as OpenAI's converted ones have it."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    if kind == "trainer":
        torch.save({"epoch": 3, "name": "x", "state_dict": saved(model), "optimizer": {"state": {}}}, folder / "a.pt")
        return folder / "a.pt"
    if kind == "published":
        save_file(weights, folder / "open_clip_model.safetensors")
        return folder / "open_clip_model.safetensors"
    if kind == "custom_text":
        text = {n: n if n.startswith(("visual.", "logit")) else f"text.{n}" for n in weights}
        weights = {text[name]: value for name, value in weights.items()} | {"text.attn_mask": torch.zeros(12, 12)}
    if kind == "openai":
        sizes = {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(12),
            "vocab_size": torch.tensor(100),
        }
        weights |= sizes
    torch.save(weights, folder / "a.pt")
    return folder / "a.pt"


@pytest.mark.parametrize("kind", ["trainer", "published", "custom_text", "openai"])
def test_features_are_the_originals(kind, original, make_config, batch, tmp_path: Path) -> None:
    path = save(original, tmp_path, kind)
    ours = build_contrastive_model(make_config(section(path, config={} if kind == "openai" else SAID))).eval()
    ids = batch["input_ids"].clamp(max=98)
    ids[torch.arange(6), batch["attention_mask"].sum(1) - 1] = 99  # the text's end has the largest id
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    outputs = ours({"pixel_values": pixels, "input_ids": ids, "attention_mask": batch["attention_mask"]})
    images, texts = original(pixels, ids)
    torch.testing.assert_close(outputs["image_features"], images, rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs["text_features"], texts, rtol=0, atol=1e-6)
    assert outputs["logit_scale"].item() == pytest.approx(original.logit_scale.exp().item(), rel=1e-6)
    again = build_contrastive_model(make_config(section(path, config={} if kind == "openai" else SAID)))
    torch.nn.init.zeros_(again.text_projection.weight)
    load_pretrained_weights(again, str(path), make_config(section(path)))
    assert torch.equal(again.text_projection.weight, ours.text_projection.weight)


def test_the_activation_is_never_guessed(original, make_config, tmp_path: Path) -> None:
    path = save(original, tmp_path, "trainer")
    with pytest.raises(UserError, match=r"model.config must say hidden_act: .*quick_gelu for OpenAI's"):
        build_contrastive_model(make_config(section(path)))
    with pytest.raises(UserError, match=r"model.config must say hidden_act"):
        build_contrastive_model(make_config(section(path, config={"text_config": {"hidden_act": "gelu"}})))


@pytest.mark.parametrize(("model_cfg", "expected"), [({"embed_dim": 32}, "gelu"), ({"quick_gelu": True}, "quick_gelu")])
def test_open_clips_configuration_beside_the_file_says_it(model_cfg, expected, original, make_config, tmp_path) -> None:
    path = save(original, tmp_path, "published")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    config = build_contrastive_model(make_config(section(path))).config
    assert (config.vision_config.hidden_act, config.text_config.hidden_act) == (expected, expected)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a configuration of open_clip"):
        build_contrastive_model(make_config(section(path)))


def test_sizes_come_from_shapes(original, make_config, tmp_path: Path) -> None:
    config = build_contrastive_model(make_config(section(save(original, tmp_path, "openai")))).config
    text, vision = config.text_config, config.vision_config
    assert (text.vocab_size, text.hidden_size, text.intermediate_size, text.max_position_embeddings) == (
        100,
        64,
        256,
        12,
    )
    assert (text.num_hidden_layers, vision.num_hidden_layers, config.projection_dim) == (3, 2, 32)
    assert (text.eos_token_id, vision.patch_size, vision.image_size, vision.num_attention_heads) == (99, 8, 32, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.ln_pre.weight": None}, r"missing: visual.ln_pre.weight"),
        ({"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(64)}, r"unexpected: .*ls_1.gamma"),
        ({"visual.conv1.weight": None, "visual.trunk.x": torch.ones(1)}, r"has no visual.conv1.weight"),
        ({"token_embedding.weight": None}, r"has no token_embedding.weight"),
    ],
)
def test_other_architectures_are_refused(change, message, original, make_config, tmp_path: Path) -> None:
    weights = {name: value for name, value in (original.state_dict() | change).items() if value is not None}
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(section(tmp_path / "a.pt", config=SAID)))


def test_siglip_and_dual_encoders_have_no_such_files(tiny, original, make_config, tmp_path: Path) -> None:
    path = save(original, tmp_path, "trainer")
    with pytest.raises(UserError, match="siglip is read from Hugging Face folders alone"):
        build_contrastive_model(make_config(section(path, type="siglip")))
    model = build_contrastive_model(make_config(tiny["siglip"]))
    with pytest.raises(UserError, match=r"initialize_from: .*siglip is read from Hugging Face folders alone"):
        load_pretrained_weights(model, str(path), make_config(tiny["siglip"]))
    model = build_contrastive_model(make_config(tiny["vit"]))
    with pytest.raises(UserError, match=r"initialize_from: .*is not a dual encoder's export"):
        load_pretrained_weights(model, str(path), make_config(tiny["vit"]))
