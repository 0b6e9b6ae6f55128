import math

import pytest
import torch
from torch import Tensor, nn

from accel_train.models.position_embeddings import fit_positions, resize_positions


def weight(distance: float) -> float:
    """Keys' cubic convolution kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def naive(positions: Tensor, new: int) -> Tensor:
    """Place by place: the first and last places of both grids coincide, and the border repeats itself outside."""
    old = math.isqrt(len(positions))
    grid = positions.double().reshape(old, old, -1)
    found = torch.zeros(new, new, grid.shape[-1], dtype=torch.float64)
    for row in range(new):
        for column in range(new):
            y, x = row * (old - 1) / (new - 1), column * (old - 1) / (new - 1)
            for i in range(math.floor(y) - 1, math.floor(y) + 3):
                for j in range(math.floor(x) - 1, math.floor(x) + 3):
                    nearest = grid[min(max(i, 0), old - 1), min(max(j, 0), old - 1)]
                    found[row, column] += weight(y - i) * weight(x - j) * nearest
    return found.reshape(new * new, -1)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 24), (24, 16), (7, 7)])
def test_equals_the_interpolation_written_out(old: int, new: int) -> None:
    positions = torch.randn(old * old + 1, 3, generator=torch.Generator().manual_seed(old))
    found = resize_positions(positions, new * new + 1)
    assert torch.equal(found[0], positions[0])  # the class token's
    torch.testing.assert_close(found[1:].double(), naive(positions[1:], new), rtol=0, atol=1e-5)
    without = resize_positions(positions[1:], new * new)
    assert torch.equal(without, found[1:])


def test_corners_stay_where_they_are() -> None:
    """Shows the difference to transformers' own interpolation, which doesn't align them."""
    positions = torch.randn(17, 2)
    found = resize_positions(positions, 37)
    torch.testing.assert_close(found[[1, 6, 31, 36]], positions[[1, 4, 13, 16]])


@pytest.mark.parametrize(("old", "new"), [(17, 36), (16, 37), (18, 26), (17, 27)])
def test_other_numbers_are_no_grids(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="can't become"):
        resize_positions(torch.zeros(old, 2), new)


def test_only_another_grid_is_resized_and_said() -> None:
    model = nn.Module()
    model.vision_model = nn.Module()
    model.vision_model.embeddings = nn.Module()
    model.vision_model.embeddings.position_embedding = nn.Embedding(17, 2)
    name = "vision_model.embeddings.position_embedding.weight"
    same, other, odd = (
        {name: torch.ones(17, 2)},
        {name: torch.ones(10, 2), "x": torch.ones(1)},
        {name: torch.ones(8, 2)},
    )
    assert fit_positions(same, model, "there") == ()
    assert fit_positions(odd, model, "there") == ()
    assert odd[name].shape == (8, 2)
    (note,) = fit_positions(other, model, "there")
    assert note.startswith("position embeddings of there were resized from 3 x 3 to 4 x 4 patches")
    assert other[name].shape == (17, 2)
    assert other["x"].shape == (1,)
