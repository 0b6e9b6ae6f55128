"""Patch embeddings as one product, against the convolution that they are written as."""

import copy

import pytest
import torch
from torch import nn

from accel_train.models.build import build_contrastive_model
from accel_train.models.patches import PatchProjection, multiply_patches


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("patch", "size"), [(8, (24, 24)), (16, (32, 64)), (14, (33, 30))])
def test_outputs_and_gradients_are_the_convolutions(patch: int, size: tuple[int, int], *, bias: bool) -> None:
    """What is less than a patch at the right and below is left out, as a convolution does."""
    convolution = nn.Conv2d(3, 20, patch, patch, bias=bias).double()
    product = nn.Sequential(copy.deepcopy(convolution))
    multiply_patches(product)
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    found, wanted = product(images), convolution(images)
    torch.testing.assert_close(found, wanted)
    inputs = [images, *convolution.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.sin().sum(), [images, *product.parameters()]),
        torch.autograd.grad(wanted.sin().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_patches_are_ready_to_be_tokens() -> None:
    """Flattened and transposed, as every embedding does with them, they need no copy."""
    layer = nn.Sequential(nn.Conv2d(3, 20, 8, 8))
    multiply_patches(layer)
    assert layer(torch.randn(2, 3, 32, 32)).flatten(2).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    "options",
    [{"stride": 4}, {"stride": 8, "padding": 1}, {"stride": 8, "dilation": 2}, {"stride": 8, "groups": 3}],
)
def test_other_convolutions_stay(options: dict[str, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 8, **options), nn.Conv2d(3, 6, 2, 2))
    multiply_patches(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, nn.Conv2d]


@pytest.mark.parametrize("family", ["chinese_clip", "clip", "siglip", "vit", "dinov2"])
def test_every_family_of_transformers_has_one(family, tiny, make_config) -> None:
    model = build_contrastive_model(make_config(tiny[family]))
    assert [type(module) for module in model.modules() if isinstance(module, nn.Conv2d)] == [PatchProjection]
