import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ChineseCLIPModel, CLIPModel, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.export import load_pretrained_weights, save_pretrained

PLAIN = {"chinese_clip": ChineseCLIPModel, "clip": CLIPModel, "siglip": SiglipModel}


def trained(section, make_config, loss: str = "info_nce"):
    """A model whose every weight, the temperature included, differs from its start."""
    config = make_config(section, loss)
    torch.manual_seed(5)
    model = build_contrastive_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), config


@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("family", list(PLAIN))
def test_the_plain_class_of_transformers_gives_equal_outputs(
    family, loss, tiny, make_config, batch, tmp_path: Path
) -> None:
    model, config = trained(tiny[family], make_config, loss)
    save_pretrained(model, str(tmp_path), config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [PLAIN[family].__name__]
    assert load_file(tmp_path / "model.safetensors")["logit_scale"].ndim == (1 if family == "siglip" else 0)

    plain, report = PLAIN[family].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    pixels = (batch["pixel_values"] / 255 - model.pixel_mean) / model.pixel_std
    found = plain.eval()(pixel_values=pixels, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    outputs = model(batch)
    torch.testing.assert_close(found.image_embeds, outputs["image_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, outputs["text_features"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain.logit_scale.exp().reshape(1), outputs["logit_scale"])


@pytest.mark.parametrize("family", ["chinese_clip", "clip", "siglip", "vit", "dinov2", "convnext", "resnet"])
def test_weights_come_back_into_a_fresh_model(family, tiny, make_config, batch, tmp_path: Path) -> None:
    model, config = trained(tiny[family], make_config)
    save_pretrained(model, str(tmp_path), config)
    fresh = build_contrastive_model(config).eval()
    load_pretrained_weights(fresh, str(tmp_path), config)
    for name, value in model(batch).items():
        assert torch.equal(value, fresh(batch)[name]), name


def test_a_given_temperature_stays_in_force(tiny, make_config, tmp_path: Path) -> None:
    model, config = trained(tiny["clip"], make_config)
    save_pretrained(model, str(tmp_path), config)
    given = make_config(tiny["clip"] | {"temperature": 0.5})
    fresh = build_contrastive_model(given)
    load_pretrained_weights(fresh, str(tmp_path), given)
    assert fresh.logit_scale.item() == pytest.approx(np.log(2))


def test_backbones_of_a_dual_encoder_load_alone(tiny, make_config, batch, tmp_path: Path) -> None:
    model, config = trained(tiny["convnext"], make_config)
    save_pretrained(model, str(tmp_path), config)
    image = AutoModel.from_pretrained(tmp_path / "image").eval()
    pixels = (batch["pixel_values"] / 255 - model.pixel_mean) / model.pixel_std
    torch.testing.assert_close(image(pixels).pooler_output, model.vision_model(pixels).pooler_output)
    text = AutoModel.from_pretrained(tmp_path / "text").eval()
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(text(**tokens).last_hidden_state, model.text_model(**tokens).last_hidden_state)
    backbones = {"image": {"pretrained": str(tmp_path / "image")}, "text": {"pretrained": str(tmp_path / "text")}}
    section = {"type": "dual_encoder", "projection_dim": 16} | backbones
    again = build_contrastive_model(make_config(section)).eval()
    load_pretrained_weights(again, str(tmp_path), make_config(section))
    assert torch.equal(again(batch)["text_features"], model(batch)["text_features"])


def test_weights_that_do_not_fit_are_named(tiny, make_config, tmp_path: Path) -> None:
    model, config = trained(tiny["convnext"], make_config)
    save_pretrained(model, str(tmp_path), config)
    fresh = build_contrastive_model(make_config(tiny["convnext"] | {"projection_dim": 8}))
    with pytest.raises(
        UserError, match=r"initialize_from: .*text_projection.weight is \(16, 32\) there and \(8, 32\) here"
    ):
        load_pretrained_weights(fresh, str(tmp_path), config)
    heads = load_file(tmp_path / "heads.safetensors")
    heads["strange"] = heads.pop("text_pooling.query")
    save_file(heads, tmp_path / "heads.safetensors")
    with pytest.raises(UserError, match=r"missing text_pooling.query; unexpected strange"):
        load_pretrained_weights(build_contrastive_model(config), str(tmp_path), config)
    with pytest.raises(UserError, match="is not a dual encoder's export"):
        load_pretrained_weights(build_contrastive_model(config), str(tmp_path / "image"), config)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_the_image_processor_does_what_the_settings_say(resize, tiny, make_config, tmp_path: Path) -> None:
    """A plain gradient, 40 x 80: after the processor of transformers it has our size and our normalisation."""
    config = make_config(tiny["clip"], resize=resize)
    save_pretrained(build_contrastive_model(config), str(tmp_path), config)
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    pixels = np.broadcast_to(np.linspace(0, 255, 80)[None, :, None], (40, 80, 3)).astype(np.uint8)
    found = torch.as_tensor(np.array(processor(Image.fromarray(pixels))["pixel_values"][0]))
    assert found.shape == (3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.data.image_mean, config.data.image_std))
    grey = (found * std + mean) * 255
    spread = grey[0, 16, -1] - grey[0, 16, 0]
    assert spread.item() == pytest.approx(250 if resize == "squash" else 125, abs=8)
