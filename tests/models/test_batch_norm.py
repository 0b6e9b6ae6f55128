import pytest
import torch
from torch import nn

from accel_train.errors import UserError
from accel_train.models.batch_norm import FrozenBatchNorm2d, apply_batch_norm
from accel_train.models.build import build_contrastive_model


def test_refused_with_the_layer_and_the_remedies(tiny, make_config) -> None:
    with pytest.raises(UserError, match=r"14 BatchNorm layers \(vision_model.embedder.*batch_norm=frozen.*=local"):
        build_contrastive_model(make_config(tiny["resnet"] | {"batch_norm": "refuse"}))


def test_models_without_it_pass(tiny, make_config) -> None:
    build_contrastive_model(make_config(tiny["convnext"] | {"batch_norm": "refuse"}))


def test_frozen_equals_eval_mode_and_survives_train_mode(tiny, make_config, batch) -> None:
    torch.manual_seed(0)
    frozen = build_contrastive_model(make_config(tiny["resnet"]))
    torch.manual_seed(0)
    local = build_contrastive_model(make_config(tiny["resnet"] | {"batch_norm": "local"}))
    assert [name for name, _ in frozen.named_parameters()] == [name for name, _ in local.named_parameters()]
    images = {"pixel_values": batch["pixel_values"]}
    expected = local.eval()(images)["image_features"]
    before = {name: value.clone() for name, value in frozen.named_buffers()}
    torch.testing.assert_close(frozen.train()(images)["image_features"], expected)
    assert all(torch.equal(before[name], value) for name, value in frozen.named_buffers())
    assert not torch.allclose(local.train()(images)["image_features"], expected)


def test_frozen_keeps_statistics_and_trains_its_scale() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3))
    model[0].running_mean.uniform_(-1, 1)
    model[0].running_var.uniform_(0.5, 2)
    expected = model.eval()(torch.ones(2, 4, 3, 3))
    apply_batch_norm(model, "frozen")
    assert isinstance(model[0], FrozenBatchNorm2d)
    found = model.train()(torch.ones(2, 4, 3, 3))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert model[0].weight.grad is not None


def test_batch_norm_without_running_statistics_can_not_be_frozen() -> None:
    with pytest.raises(UserError, match=r"0 \(BatchNorm2d\) has no 2-d running statistics"):
        apply_batch_norm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), "frozen")
