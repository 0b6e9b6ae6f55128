"""Clipping by group norms, against torch's clipping of the gradients themselves."""

import math

import pytest
import torch
from torch import Tensor, nn

from accel_train.optim.clip import clip_factors, total_norm

TOWERS = ["image", "image", "text", "text", "heads"]


@pytest.fixture
def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator) * scale for size, scale in ((7, 3), (5, 1), (9, 2), (1, 5), (4, 0.1))
    ]


def norms_of(gradients: list[Tensor]) -> Tensor:
    return torch.stack([gradient.norm() for gradient in gradients])


def clipped_by_torch(
    gradients: list[Tensor], tower_limits: dict[str, float | None], limit: float | None
) -> list[Tensor]:
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    for tower, tower_limit in tower_limits.items():
        if tower_limit is not None:
            members = [p for p, name in zip(parameters, TOWERS, strict=True) if name == tower]
            nn.utils.clip_grad_norm_(members, tower_limit)
    if limit is not None:
        nn.utils.clip_grad_norm_(parameters, limit)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize(
    ("tower_limits", "limit"),
    [
        ({}, None),
        ({}, 1.5),
        ({}, 1e6),
        ({"image": 0.5}, None),
        ({"image": 0.5, "text": 1e6, "heads": 0.01}, None),
        ({"image": 4.0, "text": 2.0}, 1.0),
        ({"image": 0.5}, 1e6),
    ],
)
def test_equals_torch(gradients: list[Tensor], tower_limits: dict[str, float | None], limit: float | None) -> None:
    limits = [tower_limits.get(tower) for tower in TOWERS]
    factors = clip_factors(norms_of(gradients), TOWERS, limits, limit)
    wanted = clipped_by_torch(gradients, tower_limits, limit)
    for gradient, factor, clipped in zip(gradients, factors, wanted, strict=True):
        torch.testing.assert_close(gradient * factor, clipped)


def test_nothing_to_clip_is_exactly_one(gradients: list[Tensor]) -> None:
    """So that an untouched tower is the same to the bit."""
    factors = clip_factors(norms_of(gradients), TOWERS, [None, None, 1e9, 1e9, None], 1e9)
    assert factors == [1.0] * 5


def test_a_tower_is_clipped_as_one(gradients: list[Tensor]) -> None:
    factors = clip_factors(norms_of(gradients), TOWERS, [0.5, 0.5, None, None, None], None)
    assert factors[0] == factors[1] < 1
    assert factors[2:] == [1.0] * 3
    image = math.hypot(*(float(gradient.norm()) for gradient in gradients[:2]))
    assert factors[0] * image == pytest.approx(0.5, rel=1e-5)


def test_the_overall_limit_holds_after_the_towers(gradients: list[Tensor]) -> None:
    norms = norms_of(gradients)
    factors = clip_factors(norms, TOWERS, [0.5, 0.5, None, None, None], 0.25)
    assert total_norm(norms * torch.tensor(factors)) == pytest.approx(0.25, rel=1e-5)


def test_no_gradient_at_all() -> None:
    assert clip_factors(torch.zeros(2), ["a", "b"], [1.0, None], 1.0) == [1.0, 1.0]
    assert total_norm(torch.zeros(2)) == 0


def test_total_norm_of_large_norms() -> None:
    """In float32 the square would be infinite."""
    assert total_norm(torch.tensor([3e30, 4e30])) == pytest.approx(5e30, rel=1e-6)
