"""What counts as light: a few results of the output's size for each row, and no share of it from parameters."""

import torch
import torch.nn.functional as F
from torch import nn

from accel_train.light_graphs import LIGHT, all_light, is_light, light_outputs


def features(rows: int = 3, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, width)


def test_a_projection_is_light_however_large_its_weights_are() -> None:
    head = nn.Linear(1000, 8)
    assert is_light(F.normalize(head(torch.randn(3, 1000)), dim=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert is_light(head(torch.randn(3, 1000)).float())


def test_results_are_summed_up_to_the_limit() -> None:
    scale = torch.ones((), requires_grad=True)
    for number, wanted in ((LIGHT, True), (LIGHT + 1, False)):
        value = features()
        for _ in range(number):
            value = value * scale
        assert is_light(value) is wanted


def test_tokens_are_heavy() -> None:
    block = nn.Linear(8, 8)
    assert not is_light(block(torch.randn(3, LIGHT + 1, 8)).mean(1))


def test_frozen_rows_and_what_hangs_on_them_count_nothing() -> None:
    tower, head = nn.Linear(8, 2000).requires_grad_(False), nn.Linear(2000, 8)
    assert is_light(head(tower(features())))
    tower.requires_grad_(True)
    assert not is_light(head(tower(features())))


def test_outputs_by_name() -> None:
    tower, head = nn.Linear(8, 2000), nn.Linear(2000, 8)
    outputs = {
        "frozen": features(),
        "light": head(features(width=2000)),
        "heavy": head(tower(features())),
        "shared": torch.ones(1, requires_grad=True).exp(),
    }
    light = light_outputs(outputs, ["frozen", "light", "heavy", "absent"])
    assert light == {"light"}
    assert not all_light(outputs, light | {"shared"})
    del outputs["heavy"]
    assert all_light(outputs, light | {"shared"})
