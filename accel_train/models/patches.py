"""Patches of an image through one matrix product, where transformers has a convolution as long as its steps.

It multiplies the same numbers. For this shape cuDNN has no kernel worth the name: on an H200 it took 8.4 ms for 1,024 images
of 224 px in patches of 16, whose product takes less than one; oneDNN takes five times the product's time in bf16. And in
fp32 cuDNN rounds to TF32 unless told otherwise, which products don't.
"""

from torch import Tensor, nn

SHORTEST_SIDE = 8
"""Of a patch, px. Smaller kernels, as ConvNeXt has between its stages, are left to convolutions."""


class PatchProjection(nn.Conv2d):
    """A convolution without overlaps: (n, C, height, width) to (n, D, rows, columns) of patches, whole ones alone."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.kernel_size
        cut = images.unfold(2, height, height).unfold(3, width, width)
        n, _, rows, columns, *_ = cut.shape
        patches = cut.permute(0, 2, 3, 1, 4, 5).reshape(n, rows * columns, -1)
        found = nn.functional.linear(patches, self.weight.flatten(1), self.bias)
        return found.transpose(1, 2).unflatten(2, (rows, columns))


def multiply_patches(model: nn.Module) -> None:
    """Turns a model's patch embeddings into `PatchProjection`; their parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _cuts_patches(module):
            module.__class__ = PatchProjection


def _cuts_patches(layer: nn.Conv2d) -> bool:
    whole = layer.padding in ((0, 0), "valid") and layer.dilation == (1, 1) and layer.groups == 1
    return whole and layer.kernel_size == layer.stride and min(layer.kernel_size) >= SHORTEST_SIDE
