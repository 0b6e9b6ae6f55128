"""The fused kernels of InfoNCE on a device that they are for: numbers, and time over the chunks'."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.losses.contrastive import info_nce
from accel_train.losses.fused import obstacle
from accel_train.tools.bench.figures import Figure
from accel_train.tools.bench.loss_costs import fused_figure

ROWS, WIDTH = 16_384, 512
DEVICE = torch.device("cuda")
OPTIONS = {"positives": "shared", "label_smoothing": 0.1}


@pytest.fixture(autouse=True)
def _only_where_the_kernels_run() -> None:
    if reason := obstacle(DEVICE, ROWS):
        pytest.skip(reason)


def features(scale: float, noise: float) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    image, text = (torch.randn(ROWS, WIDTH, generator=generator, device=DEVICE) for _ in range(2))
    pair = F.normalize(image, dim=-1), F.normalize(image + noise * text, dim=-1)
    return [tensor.requires_grad_() for tensor in (*pair, torch.tensor([scale], device=DEVICE))]


def keys() -> dict[str, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(1)
    image, text = torch.randint(ROWS, (2, ROWS), generator=generator, device=DEVICE)
    return {"image_key": image, "text_key": text}


def with_gradients(tensors: list[Tensor], **options: object) -> list[Tensor]:
    loss = info_nce(*tensors, **keys(), **options)
    return [loss.detach(), *torch.autograd.grad(loss, tensors)]


def distances(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [((one - other).norm() / other.norm()).item() for one, other in zip(found, exact, strict=True)]


@pytest.mark.parametrize("options", [{}, OPTIONS])
@pytest.mark.parametrize(("scale", "noise"), [(14.3, 3.0), (100.0, 3.0), (100.0, 2.0)])
def test_loss_and_gradients_are_as_near_to_float64_as_the_chunks(
    scale: float, noise: float, options: dict[str, object]
) -> None:
    """`noise` 3 is a model at its start. At 2 and a scale of 100 the loss is so small that fp32 keeps little of it."""
    tensors = features(scale, noise)
    exact = with_gradients([tensor.detach().double().requires_grad_() for tensor in tensors], **options)
    fused = distances(with_gradients(tensors, **options), exact)
    chunked = distances(with_gradients(tensors, **options, chunk_size=256), exact)
    assert all(one < 2 * other + 2e-5 for one, other in zip(fused, chunked, strict=True)), (fused, chunked)


def test_shares_of_ranks_add_up() -> None:
    tensors = features(50.0, 2.0)
    whole = with_gradients(tensors, **OPTIONS)
    cuts = itertools.pairwise((0, 1000, 9000, ROWS))
    shares = [with_gradients(tensors, **OPTIONS, anchors=part) for part in cuts]
    added = [torch.stack(part).sum(0) for part in zip(*shares, strict=True)]
    assert max(distances(added, whole)) < 5e-5


def test_results_repeat_to_the_bit() -> None:
    tensors = features(50.0, 2.0)
    once, again = (with_gradients(tensors, **OPTIONS) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.benchmark
@pytest.mark.parametrize("num_ranks", [1, 8])
@pytest.mark.parametrize("rows", [16_384, 32_768])
def test_time_over_chunks(rows: int, num_ranks: int, record: Callable[[Figure], None]) -> None:
    record(fused_figure(rows, num_ranks, rounds=7))
