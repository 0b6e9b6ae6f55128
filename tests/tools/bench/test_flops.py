"""Operations counted against products written out by hand."""

import re

import pytest
import torch
from torch import Tensor, nn

from accel_train.tools.bench.flops import PEAKS, device_peak, measured_peak, model_flops_per_row
from tests.distributed.toy import TokenTask
from tests.tools.profile.test_recording import small_config

ROWS, LENGTH, WIDTH, HEADS = 3, 16, 32, 4


class Attention(nn.Module):
    """One projection that learns, one that doesn't, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.learnt = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.frozen.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        heads = self.learnt(self.frozen(batch["x"])).view(-1, LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)
        return {"y": nn.functional.scaled_dot_product_attention(heads, heads, heads)}


def test_operations_are_those_of_the_products() -> None:
    batch = {"x": torch.randn(ROWS, LENGTH, WIDTH), "sample_id": torch.arange(ROWS)}
    linear = 2 * LENGTH * WIDTH * WIDTH
    product = 2 * LENGTH * LENGTH * WIDTH
    # The frozen layer has a forward pass alone; the learnt one a gradient of its weight, and none of its input, which needs
    # none; attention two products, and five backward, one of them the scores again, as the kernels do.
    wanted = linear + 2 * linear + 2 * product + 5 * product
    task = TokenTask(small_config())
    assert model_flops_per_row(task, Attention(), batch) == wanted


def test_recomputed_blocks_are_not_more_work() -> None:
    """Nor are operations counted that depend on the number of rows."""
    torch.manual_seed(0)
    model, task = Attention(), TokenTask(small_config())
    many = {"x": torch.randn(20, LENGTH, WIDTH), "sample_id": torch.arange(20)}
    few = {name: column[:2] for name, column in many.items()}
    assert model_flops_per_row(task, model, many) == model_flops_per_row(task, model, few)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_peak_of_this_cpu_is_measured() -> None:
    peak = device_peak(torch.device("cpu"), "fp32")
    assert 1e8 < peak.flops_per_second < 1e14
    assert "measured here" in peak.source
    assert measured_peak(torch.device("cpu"), "bf16", seconds=0.05) > 1e7


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_known_gpus(name: str, half: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = device_peak(torch.device("cuda"), "bf16")
    assert peak.flops_per_second == half * 1e12
    assert name in peak.source
    assert sum(bool(re.search(rf"\b{known}\b", name)) for known in PEAKS) >= 1
