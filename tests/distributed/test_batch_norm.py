"""`model.batch_norm: sync`: ranks normalise by the statistics of all of them, however many rows each one holds.

`python -m tests.distributed.test_batch_norm OUT` is one rank; it writes what it found to OUT/RANK.pt.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from accel_train.models.batch_norm import apply_batch_norm
from tests.distributed.closeness import worst_difference, worst_relative_error
from tests.distributed.conftest import Observed
from tests.distributed.ranks import run_ranks
from tests.distributed.reference import Reference
from tests.distributed.scenarios import WHOLE_ENGINES

ROWS = [[5, 3], [1, 7]]
"""Rows of rank 0 and of rank 1, of each of two batches."""

TOLERANCE = 1e-13
"""In fp64, where a wrong count or a wrong share stands out from rounding."""


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    ).double()


def batch(number: int) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def loss(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(-1, 1, outputs.shape[-1])).square().sum()


def steps(net: nn.Module, rank: int | None) -> dict[str, Any]:
    """Outputs, gradients and running statistics over both batches; with a rank, over its rows alone."""
    outputs = []
    for number, rows in enumerate(ROWS):
        whole = batch(number)
        own = whole if rank is None else whole.split(rows)[rank]
        outputs.append(net(own))
        loss(outputs[-1]).backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    if rank is not None:
        for gradient in gradients:
            dist.all_reduce(gradient)
    return {"outputs": [item.detach() for item in outputs], "gradients": gradients, "state": net.state_dict()}


def main() -> None:
    dist.init_process_group("gloo")
    net = model()
    apply_batch_norm(net, "sync")
    rank = dist.get_rank()
    torch.save(steps(net, rank), Path(sys.argv[1]) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def test_two_ranks_equal_torchs_batch_norm_on_the_whole_batch(tmp_path: Path) -> None:
    finished = run_ranks(2, "-m", "tests.distributed.test_batch_norm", str(tmp_path), timeout=60)
    assert [rank.exit_code for rank in finished] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    wanted = steps(model(), None)
    for number, output in enumerate(wanted["outputs"]):
        pieces = torch.cat([part["outputs"][number] for part in found])
        torch.testing.assert_close(pieces, output, rtol=0, atol=TOLERANCE)
    for part in found:
        for one, other in zip(part["gradients"], wanted["gradients"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=100 * TOLERANCE)
        for name, value in wanted["state"].items():
            torch.testing.assert_close(part["state"][name], value, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("engine", WHOLE_ENGINES)
def test_a_run_with_one_micro_batch_equals_one_process(
    engine: str, observed: Observed, reference: Callable[..., Reference]
) -> None:
    found, wanted = observed(engine, 2, "synced@1"), reference("synced")
    assert found.losses == pytest.approx(wanted.losses, abs=1e-5)
    error, name = worst_relative_error(found.found["gradients"], wanted.gradients)
    assert error < 1e-5, name
    difference, name = worst_difference(found.weights, wanted.weights[-1])
    assert difference < 1e-5, name
    moved = {name: buffer for name, buffer in wanted.buffers.items() if "running" in name}
    assert moved
    difference, name = worst_difference({name: found.found["buffers"][name] for name in moved}, moved)
    assert difference < 1e-5, name


if __name__ == "__main__":
    main()
