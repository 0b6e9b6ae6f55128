"""Operations of convolutions, counted as torch counts a forward pass, against those of their products by hand."""

import pytest
import torch
from torch import nn

from accel_train.tools.dry_run.counting import Counting

IMAGES, SIDE, CHANNELS, KERNEL = 2, 10, 12, 3


def counted(layer: nn.Module, *, learns_images: bool) -> dict[str, int]:
    """Operations by kind of one pass forward and back."""
    images = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, requires_grad=learns_images)
    counting = Counting()
    with counting:
        layer(images).sum().backward()
    found: dict[str, int] = {}
    for work, number in counting.work.items():
        found[work.kind] = found.get(work.kind, 0) + work.size * number
    return found


@pytest.mark.parametrize("learns_images", [False, True])
@pytest.mark.parametrize(("groups", "kind"), [(1, "convolution"), (CHANNELS, "depthwise"), (3, "depthwise")])
def test_each_gradient_takes_what_the_forward_pass_takes(groups: int, kind: str, learns_images: bool) -> None:
    layer = nn.Conv2d(CHANNELS, 24, KERNEL, padding=1, groups=groups)
    forward = 2 * IMAGES * SIDE**2 * 24 * (CHANNELS // groups) * KERNEL**2
    found = counted(layer, learns_images=learns_images)
    assert (found[kind], found[f"{kind}_backward"]) == (forward, forward * (1 + learns_images))


def test_a_transposed_convolution() -> None:
    found = counted(nn.ConvTranspose2d(CHANNELS, 24, 2, stride=2), learns_images=True)
    forward = 2 * IMAGES * SIDE**2 * CHANNELS * 24 * 4
    assert (found["convolution"], found["convolution_backward"]) == (forward, 2 * forward)
