import json
from pathlib import Path

import pytest
import torch
from transformers import ChineseCLIPModel, CLIPModel, SiglipModel

from accel_train.errors import UserError
from accel_train.models.build import build_contrastive_model
from accel_train.models.position_embeddings import resize_positions

PLAIN = {"chinese_clip": ChineseCLIPModel, "clip": CLIPModel, "siglip": SiglipModel}


@pytest.mark.parametrize("family", list(PLAIN))
def test_equals_the_plain_model_of_transformers(family, tiny, make_config, batch, tmp_path: Path) -> None:
    """The same logits, with padding in the texts, from the same folder of weights; names are those of transformers."""
    torch.manual_seed(1)
    random = build_contrastive_model(make_config(tiny[family]))
    plain = PLAIN[family](random.config).eval()
    plain.save_pretrained(tmp_path)
    ours = build_contrastive_model(
        make_config({"type": family, "pretrained": str(tmp_path)}, max_text_length=64)
    ).eval()
    assert {name for name, _ in ours.named_parameters()} <= {name for name, _ in plain.named_parameters()}

    pixels = (batch["pixel_values"] / 255 - ours.pixel_mean) / ours.pixel_std
    expected = plain(pixel_values=pixels, input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    outputs = ours(batch)
    logits = outputs["logit_scale"] * outputs["image_features"] @ outputs["text_features"].T
    if family == "siglip":
        logits = logits + plain.logit_bias
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-5, atol=1e-5)


def test_without_the_mask_chinese_clip_would_differ(tiny, make_config, batch) -> None:
    """Shows that the comparison above can fail."""
    model = build_contrastive_model(make_config(tiny["chinese_clip"])).eval()
    everything = batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}
    assert (model(batch)["text_features"] - model(everything)["text_features"]).abs().max() > 1e-3


def test_bf16_weights_are_loaded_as_fp32(tiny, make_config, tmp_path: Path) -> None:
    model = build_contrastive_model(make_config(tiny["clip"]))
    CLIPModel(model.config).to(torch.bfloat16).save_pretrained(tmp_path)
    ours = build_contrastive_model(make_config({"type": "clip", "pretrained": str(tmp_path)}))
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_a_pretrained_temperature_is_kept_unless_one_is_given(tiny, make_config, tmp_path: Path) -> None:
    plain = CLIPModel(build_contrastive_model(make_config(tiny["clip"])).config)
    plain.logit_scale.data.fill_(3.25)
    plain.save_pretrained(tmp_path)
    section = {"type": "clip", "pretrained": str(tmp_path)}
    assert build_contrastive_model(make_config(section)).logit_scale.item() == 3.25
    given = build_contrastive_model(make_config(section | {"temperature": 0.1}))
    assert given.logit_scale.item() == pytest.approx(torch.tensor(10.0).log().item())


def test_on_meta_a_folder_needs_no_weights_to_be_read(tiny, make_config, tmp_path: Path) -> None:
    CLIPModel(build_contrastive_model(make_config(tiny["clip"])).config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with torch.device("meta"):
        model = build_contrastive_model(make_config({"type": "clip", "pretrained": str(tmp_path)}))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_changes_to_a_named_size_reach_the_model(tiny, make_config) -> None:
    model = build_contrastive_model(make_config(tiny["chinese_clip"]))
    assert model.text_model.embeddings.word_embeddings.num_embeddings == 100
    assert model.text_model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"size": "vit_b_15"}, {}, "model.size is 'vit_b_15'; chinese_clip has tiny"),
        ({"size": "vit_l_14_336"}, {"image_size": 224}, "Set data.image_size=336"),
        ({}, {"image_size": 36}, "not a multiple of the patch size 8"),
        ({}, {"max_text_length": 65}, "reads 64 tokens at most"),
        ({"config": {"text_confg": {}}}, {}, "model.config.text_confg.*Nearest: text_config"),
        ({"config": {"text_config": {"hidden_sise": 8}}}, {}, "text_config.hidden_sise.*Nearest: hidden_size"),
        ({"config": {"text_config": 3}}, {}, "model.config.text_config is 3, but must be a mapping"),
        ({"config": {"text_config": {"hidden_size": "x"}}}, {}, "model.config: .*hidden_size"),
        ({"config": {"text_config": {"hidden_size": 33}}}, {}, "model.config: .*multiple"),
        ({"config": {"vision_config": {"image_size": 64}}}, {}, "Set data.image_size=64"),
        ({"attention": "flash_attention_2"}, {}, "model.attention is flash_attention_2"),
    ],
)
def test_wrong_settings_are_named(changes, data, message, tiny, make_config) -> None:
    with pytest.raises(UserError, match=message):
        build_contrastive_model(make_config(tiny["chinese_clip"] | changes, **data))


def test_weights_of_another_family_are_refused(tiny, make_config, tmp_path: Path) -> None:
    CLIPModel(build_contrastive_model(make_config(tiny["clip"])).config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds a clip model, but model.type is chinese_clip"):
        build_contrastive_model(make_config({"type": "chinese_clip", "pretrained": str(tmp_path)}))


@pytest.mark.parametrize("family", list(PLAIN))
def test_position_embeddings_of_a_folder_fit_another_image_size(family, tiny, make_config, batch, tmp_path) -> None:
    plain = PLAIN[family](build_contrastive_model(make_config(tiny[family])).config)
    plain.save_pretrained(tmp_path)
    section, sizes = {"type": family, "pretrained": str(tmp_path)}, {"image_size": 48, "max_text_length": 64}
    model = build_contrastive_model(make_config(section, **sizes))
    name = "vision_model.embeddings.position_embedding.weight"
    own, saved = model.state_dict(), plain.state_dict()
    assert torch.equal(own[name], resize_positions(saved[name], 36 if family == "siglip" else 37))
    assert all(torch.equal(own[key].view(value.shape), value) for key, value in saved.items() if key != name)
    assert len(model.notes) == 1
    assert "resized from 4 x 4 to 6 x 6" in model.notes[0]
    pixels = torch.zeros(2, 3, 48, 48)
    assert model({"pixel_values": pixels})["image_features"].shape[0] == 2
    assert build_contrastive_model(make_config(section, max_text_length=64)).notes == ()
    with torch.device("meta"):
        assert build_contrastive_model(make_config(section, **sizes)).state_dict()[name].shape == own[name].shape


def test_pretrained_siglip_needs_the_text_length_it_was_trained_with(tiny, make_config, tmp_path: Path) -> None:
    SiglipModel(build_contrastive_model(make_config(tiny["siglip"])).config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"Set data.max_text_length=64"):
        build_contrastive_model(make_config({"type": "siglip", "pretrained": str(tmp_path)}))


def test_old_checkpoints_with_position_ids_load(tiny, make_config, tmp_path: Path) -> None:
    """Published Chinese-CLIP folders still hold these buffers, which transformers no longer has."""
    from safetensors.torch import load_file, save_file

    ChineseCLIPModel(build_contrastive_model(make_config(tiny["chinese_clip"])).config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    build_contrastive_model(make_config({"type": "chinese_clip", "pretrained": str(tmp_path)}))


def test_the_saved_configuration_is_plain_json(tiny, make_config, tmp_path: Path) -> None:
    build_contrastive_model(make_config(tiny["clip"])).config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
