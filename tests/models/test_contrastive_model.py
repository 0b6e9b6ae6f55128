import math

import pytest
import torch

from accel_train.models.build import build_contrastive_model
from accel_train.models.contrastive_model import clamped_exp


def test_uint8_pixels_are_normalised_and_floats_taken_as_they_are(tiny, make_config, batch) -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    model = build_contrastive_model(make_config(tiny["vit"], image_mean=mean, image_std=std)).eval()
    by_hand = torch.stack([(batch["pixel_values"][:, i] / 255 - mean[i]) / std[i] for i in range(3)], dim=1)
    from_bytes, from_floats = model(batch), model(batch | {"pixel_values": by_hand})
    torch.testing.assert_close(from_bytes["image_features"], from_floats["image_features"])


@pytest.mark.parametrize("family", ["chinese_clip", "siglip", "convnext"])
def test_random_weights_start_at_temperature_seven_hundredths(family, tiny, make_config) -> None:
    model = build_contrastive_model(make_config(tiny[family], "sigmoid"))
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.logit_bias.item() == -10


def test_the_temperature_of_the_configuration_is_the_one_used(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["clip"] | {"temperature": 0.05}))
    assert model(batch)["logit_scale"].item() == pytest.approx(20, rel=1e-6)


def test_a_fixed_temperature_is_no_parameter_and_has_no_gradient(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["chinese_clip"] | {"learn_temperature": False}, "sigmoid"))
    outputs = model(batch)
    assert not outputs["logit_scale"].requires_grad
    assert not outputs["logit_bias"].requires_grad
    assert not [name for name, _ in model.named_parameters() if name.startswith("logit_")]
    assert {"logit_scale", "logit_bias"} <= model.state_dict().keys()


def test_logit_bias_is_kept_but_not_trained_under_a_softmax(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["siglip"], "info_nce"))
    assert "logit_bias" in model.state_dict()
    assert "logit_bias" not in dict(model.named_parameters())
    assert "logit_bias" not in model(batch)


@pytest.mark.parametrize("start", [1.0, math.log(100), 5.0, 200.0])
def test_the_clamp_lets_the_gradient_through(start: float) -> None:
    log_scale = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    scale = clamped_exp(log_scale, 100.0)
    expected = min(math.exp(min(start, 10)), 100.0)
    assert scale.item() == pytest.approx(expected)
    scale.sum().backward()
    assert log_scale.grad.item() == pytest.approx(expected)


def test_without_a_limit_there_is_no_clamp() -> None:
    assert clamped_exp(torch.tensor([6.0]), None).item() == pytest.approx(math.exp(6))


def test_features_are_fp32_under_autocast(tiny, make_config, batch) -> None:
    model = build_contrastive_model(make_config(tiny["chinese_clip"])).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch)
    assert {value.dtype for value in outputs.values()} == {torch.float32}
    torch.testing.assert_close(outputs["text_features"].norm(dim=-1), torch.ones(6))
