import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.models.batch_norm import (
    FrozenBatchNorm2d,
    LocalBatchNorm2d,
    SyncedBatchNorm2d,
    apply_batch_norm,
    batch_statistics,
)
from accel_train.models.blocks import checkpoint_activations
from accel_train.models.build import build_contrastive_model

TRAINING = ["local", "sync"]


@pytest.fixture
def resnet(tiny, make_config) -> nn.Module:
    torch.manual_seed(0)
    return build_contrastive_model(make_config(tiny["resnet"]))


def statistics(model: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in model.named_buffers() if "running" in name or "tracked" in name]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_refused_with_the_layer_and_the_remedies(resnet) -> None:
    with pytest.raises(
        UserError, match=r"14 BatchNorm layers.*\(vision_model.embedder.*batch_norm=frozen.*lr 0.*sync or"
    ):
        apply_batch_norm(resnet, "refuse")


def test_models_without_it_pass(tiny, make_config) -> None:
    apply_batch_norm(build_contrastive_model(make_config(tiny["convnext"])), "refuse")


@pytest.mark.parametrize("mode", ["refuse", "frozen", *TRAINING])
def test_layers_of_a_frozen_tower_are_left_alone(mode, resnet) -> None:
    before = dict(resnet.named_modules())
    frozen = [name for name, _ in resnet.named_parameters() if name.startswith("vision_model.")]
    apply_batch_norm(resnet, mode, frozen)
    assert dict(resnet.named_modules()) == before


def test_one_layer_that_trains_is_enough_to_refuse(resnet) -> None:
    frozen = [name for name, _ in resnet.named_parameters() if not name.startswith("vision_model.encoder.stages.3")]
    with pytest.raises(UserError, match=r"3 BatchNorm layers that would train .vision_model.encoder.stages.3"):
        apply_batch_norm(resnet, "refuse", frozen)


def test_frozen_equals_eval_mode_and_survives_train_mode(resnet, batch) -> None:
    frozen = copy.deepcopy(resnet)
    apply_batch_norm(frozen, "frozen")
    assert [name for name, _ in frozen.named_parameters()] == [name for name, _ in resnet.named_parameters()]
    images = {"pixel_values": batch["pixel_values"]}
    expected = resnet.eval()(images)["image_features"]
    before = statistics(frozen)
    torch.testing.assert_close(frozen.train()(images)["image_features"], expected)
    assert same(statistics(frozen), before)
    assert not torch.allclose(resnet.train()(images)["image_features"], expected)


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


@pytest.mark.parametrize("mode", ["frozen", *TRAINING])
def test_batch_norm_without_running_statistics_is_refused(mode) -> None:
    with pytest.raises(UserError, match=rf"batch_norm is {mode}, but 0 \(BatchNorm2d\) has no 2-d running statistics"):
        apply_batch_norm(nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), mode)


@pytest.mark.parametrize("mode", TRAINING)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"affine": False}, {"eps": 0.1, "momentum": 0.3}])
def test_one_process_is_torchs_own_batch_norm(mode, options) -> None:
    """Outputs, gradients and running statistics over three batches, then eval mode."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3, **options))
    ours = copy.deepcopy(plain)
    apply_batch_norm(ours, mode)
    assert isinstance(ours[0], {"local": LocalBatchNorm2d, "sync": SyncedBatchNorm2d}[mode])
    for _ in range(3):
        values = torch.randn(4, 3, 5, 5) * 3 + 100
        inputs = [values.clone().requires_grad_() for _ in range(2)]
        outputs = [model(item) for model, item in zip((plain, ours), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
        for output in outputs:
            (output * torch.linspace(-1, 1, 5)).square().sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-4)
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eval()(values), plain.eval()(values))


@pytest.mark.parametrize("mode", TRAINING)
def test_gradients_are_those_of_the_formula(mode) -> None:
    layer = nn.Sequential(nn.BatchNorm2d(2)).double()
    apply_batch_norm(layer, mode)
    nn.init.uniform_(layer[0].weight)
    values = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), (values,))


@pytest.mark.parametrize("mode", TRAINING)
def test_a_repeated_micro_batch_counts_once_and_gives_the_same_output(mode, resnet, batch) -> None:
    """The second pass of a cached step, with other micro-batches in between; the next step counts again."""
    apply_batch_norm(resnet, mode)
    images = {"pixel_values": batch["pixel_values"]}
    halves = [{"pixel_values": batch["pixel_values"][rows]} for rows in (slice(0, 3), slice(3, 6))]
    first = []
    for position, half in enumerate(halves):
        with batch_statistics(0, position), torch.no_grad():
            first.append(resnet(half)["image_features"])
    before = statistics(resnet)
    for position, half in enumerate(halves):
        with batch_statistics(0, position):
            assert torch.equal(resnet(half)["image_features"], first[position])
    assert same(statistics(resnet), before)
    with batch_statistics(1, 0):
        resnet(images)
    assert not same(statistics(resnet), before)
    before = statistics(resnet)
    resnet(images)  # outside, as anywhere else
    assert not same(statistics(resnet), before)


@pytest.mark.parametrize("mode", TRAINING)
def test_activation_checkpointing_counts_once(mode, resnet, batch) -> None:
    apply_batch_norm(resnet, mode)
    recomputed = copy.deepcopy(resnet)
    checkpoint_activations(recomputed)
    for model in (resnet, recomputed):
        with batch_statistics(0, 0):
            model({"pixel_values": batch["pixel_values"]})["image_features"].sum().backward()
    assert same(statistics(recomputed), statistics(resnet))


@pytest.fixture
def half_precision() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def test_sync_under_autocast_keeps_statistics_in_fp32(half_precision, resnet, batch) -> None:
    apply_batch_norm(resnet, "sync")
    resnet({"pixel_values": batch["pixel_values"]})["image_features"].sum().backward()
    assert all(value.dtype in (torch.float32, torch.int64) for value in statistics(resnet))
    assert all(p.grad.isfinite().all() for p in resnet.get_submodule("vision_model").parameters())
