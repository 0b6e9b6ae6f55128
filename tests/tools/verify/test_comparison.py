"""Closeness of tensors, against the same numbers written out with NumPy, and what readings of no step at all come to."""

import math

import numpy as np
import pytest
import torch

from accel_train.tools.verify.comparison import closeness


def test_numbers_are_those_of_the_joined_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = [torch.randn(3, 4, generator=generator), torch.randn(7, generator=generator)]
    found = [1.1 * tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for tensor in wanted]
    a, b = (np.concatenate([t.double().numpy().ravel() for t in tensors]) for tensors in (found, wanted))
    seen = closeness(found, wanted)
    assert seen.error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-12)
    assert seen.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)
    assert seen.ratio == pytest.approx(a @ b / (b @ b), rel=1e-12)
    assert seen.norm == pytest.approx(np.linalg.norm(a), rel=1e-12)


def test_an_error_below_the_floor_is_relative_to_the_floor() -> None:
    seen = closeness([torch.tensor([2e-9])], [torch.tensor([1e-9])], floor=1e-3)
    assert seen.error == pytest.approx(1e-6, rel=1e-3)


def test_slack_is_taken_off_the_difference() -> None:
    found, wanted = [torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 2.0])]
    assert closeness(found, wanted, slack=0.25).error == pytest.approx(0.75 / math.sqrt(5))
    assert closeness(found, wanted, slack=2.0).error == 0


@pytest.mark.parametrize(
    ("found", "error", "ratio"), [(0.0, 0.0, 1.0), (1.0, math.inf, math.inf)], ids=["nothing", "something"]
)
def test_where_nothing_is_wanted(found: float, error: float, ratio: float) -> None:
    seen = closeness([torch.tensor([found])], [torch.tensor([0.0])])
    assert (seen.error, seen.ratio) == (error, ratio)


def test_a_nan_is_no_closeness() -> None:
    assert math.isnan(closeness([torch.tensor([math.nan])], [torch.tensor([1.0])]).error)
