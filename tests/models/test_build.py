import pytest
import torch

from accel_train.models.build import build_contrastive_model

FAMILIES = ["chinese_clip", "clip", "siglip", "vit", "dinov2", "convnext", "resnet"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["info_nce", "sigmoid"])
def test_outputs_and_a_gradient_for_every_parameter(family, loss, tiny, make_config, batch) -> None:
    """DDP and ZeRO wait for ever, or fail, for a parameter that the forward pass doesn't use."""
    model = build_contrastive_model(make_config(tiny[family], loss))
    outputs = model(batch)
    for name in ("image_features", "text_features"):
        assert outputs[name].shape == (6, outputs["image_features"].shape[1])
        assert outputs[name].dtype == torch.float32
        torch.testing.assert_close(outputs[name].norm(dim=-1), torch.ones(6))
    assert outputs["logit_scale"].shape == (1,)
    assert ("logit_bias" in outputs) == (loss == "sigmoid")
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    assert all(parameter.ndim > 0 for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["attention", "pooler", "cls", "mean"])
def test_every_text_pooling_uses_every_parameter(pooling, tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["vit"] | {"text_pooling": pooling}))
    model(batch)["text_features"][:, 0].sum().backward()
    text = [(name, parameter) for name, parameter in model.named_parameters() if name.startswith("text_")]
    assert [name for name, parameter in text if parameter.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_on_meta_it_has_the_same_parameters_and_draws_nothing(family, tiny, make_config) -> None:
    config = make_config(tiny[family])
    real = build_contrastive_model(config)
    state = torch.get_rng_state()
    with torch.device("meta"):
        planned = build_contrastive_model(config)
    assert torch.equal(state, torch.get_rng_state())
    assert {parameter.device.type for parameter in planned.parameters()} == {"meta"}
    shapes = [[(name, value.shape) for name, value in model.named_parameters()] for model in (real, planned)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_seed_gives_one_model(family, tiny, make_config) -> None:
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(build_contrastive_model(make_config(tiny[family])).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_towers_in_the_batch_are_encoded(family, tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny[family])).eval()
    whole = model(batch)
    images = model({"pixel_values": batch["pixel_values"]})
    texts = model({name: batch[name] for name in ("input_ids", "attention_mask")})
    assert set(images) == {"image_features", "logit_scale"}
    assert set(texts) == {"text_features", "logit_scale"}
    assert torch.equal(images["image_features"], whole["image_features"])
    assert torch.equal(texts["text_features"], whole["text_features"])


@pytest.mark.parametrize("family", ["chinese_clip", "siglip", "vit", "resnet"])
def test_features_of_a_sample_do_not_depend_on_its_neighbours(family, tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny[family])).eval()
    alone = model({name: column[2:3] for name, column in batch.items()})
    torch.testing.assert_close(alone["image_features"], model(batch)["image_features"][2:3])
    torch.testing.assert_close(alone["text_features"], model(batch)["text_features"][2:3])


def test_padding_tokens_change_nothing(tiny, make_config, batch) -> None:
    for family in ("chinese_clip", "vit"):
        model = build_contrastive_model(make_config(tiny[family])).eval()
        other = batch | {"input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 42)}
        torch.testing.assert_close(model(batch)["text_features"], model(other)["text_features"])


@pytest.mark.parametrize("family", ["chinese_clip", "vit", "convnext"])
def test_attention_implementations_agree(family, tiny, make_config, batch) -> None:
    features = []
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = build_contrastive_model(make_config(tiny[family] | {"attention": attention})).eval()
        assert model.text_model.config._attn_implementation == attention
        features.append(model(batch)["text_features"])
    torch.testing.assert_close(features[0], features[1])
