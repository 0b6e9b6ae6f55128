"""Random draws are functions of where they are made."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from accel_train.models.dropout import install_per_sample_dropout
from accel_train.randomness import forward_randomness, mixed, seed_everything


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_mixed_is_splitmix64() -> None:
    """For one number: SplitMix64's output for that state, from Steele, Lea and Flood's reference code."""
    assert mixed(0) == 0xE220A8397B1DCDAF
    assert mixed(1234567) == 6457827717110365317


def test_mixed_tells_tuples_apart() -> None:
    tuples = [*product(range(12), repeat=3), *product(range(12), repeat=2), *product(range(12), repeat=1)]
    hashes = {mixed(*numbers) for numbers in tuples}
    assert len(hashes) == len(tuples)
    assert all(0 <= value < 2**64 for value in hashes)


def test_mixed_spreads_every_bit() -> None:
    """Each of the 64 bits is one in about half of the hashes: 2000 draws leave six standard deviations of room."""
    values = [mixed(7, number) for number in range(2000)]
    for bit in range(64):
        ones = sum(value >> bit & 1 for value in values)
        assert abs(ones - 1000) < 6 * 2000**0.5 / 2


@pytest.mark.parametrize("key", [0, 5, 2**32 - 1, 2**64 - 1])
def test_seed_everything_takes_every_key(key: int) -> None:
    seed_everything(key)
    first = draws()
    seed_everything(key)
    assert draws() == first
    seed_everything(key ^ 1)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def forward_draws(**changes: int) -> tuple[float, float, float]:
    place = {"seed": 1, "step": 2, "position": 3} | changes
    with forward_randomness(**place, sample_ids=None):
        return draws()


def test_entered_again_it_draws_the_same() -> None:
    assert forward_draws() == forward_draws()


@pytest.mark.parametrize("name", ["seed", "step", "position"])
def test_each_argument_changes_the_draws(name: str) -> None:
    assert forward_draws(**{name: 9}) != forward_draws()


@pytest.fixture
def dropout() -> nn.Module:
    model = nn.Sequential(nn.Dropout(0.5))
    install_per_sample_dropout(model)
    return model


def masked(model: nn.Module, samples: list[int], *, step: int = 0, position: int = 0) -> Tensor:
    ids = torch.tensor(samples)
    with forward_randomness(seed=1, step=step, position=position, sample_ids=ids):
        found: Tensor = model(torch.ones(len(samples), 64))
    return found


def test_per_sample_draws_follow_the_sample_and_not_its_place(dropout: nn.Module) -> None:
    together = masked(dropout, [4, 8, 15])
    apart = torch.cat([masked(dropout, [4], position=0), masked(dropout, [8, 15], position=1)])
    assert torch.equal(together, apart)
    assert torch.equal(masked(dropout, [15, 4], position=7), together[[2, 0]])


def test_per_sample_draws_change_with_the_step(dropout: nn.Module) -> None:
    assert not torch.equal(masked(dropout, [4]), masked(dropout, [4], step=1))
