"""AutoAugment with its policy for ImageNet (Cubuk et al. 2018, arXiv:1805.09501, table 9), in plain Pillow.

Chinese-CLIP's `--use-augment` applies it, through timm, to the image that is already cropped, scaled and flipped.
Magnitudes go from 0 to 10; what each means is timm's reading of the paper's table 6.
"""

import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

FILL = (123, 117, 104)
"""What comes in from outside the image: CLIP's mean colour."""

POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
"""Sub-policies, one of which is drawn for an image: operation, probability, magnitude; twice. The paper lists some twice."""


def auto_augment(image: Image.Image, generator: random.Random) -> Image.Image:
    """An RGB image of the same size, after one sub-policy."""
    for name, probability, magnitude in POLICY[int(generator.random() * len(POLICY))]:
        if generator.random() < probability:
            sign = -1 if generator.random() < 0.5 else 1
            image = OPERATIONS[name](image, magnitude, sign)
    return image


def _posterize(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageOps.posterize(image, posterize_bits(magnitude))


def posterize_bits(magnitude: int) -> int:
    """Bits of each colour that stay: 4 to 8, more of them the larger the magnitude."""
    return 4 + magnitude * 4 // 10


def _solarize(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageOps.solarize(image, solarize_threshold(magnitude))


def solarize_threshold(magnitude: int) -> int:
    """Values from this one on are inverted: 0 to 256."""
    return magnitude * 256 // 10


def _color(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageEnhance.Color(image).enhance(enhance_factor(magnitude))


def _contrast(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(enhance_factor(magnitude))


def _sharpness(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(enhance_factor(magnitude))


def enhance_factor(magnitude: int) -> float:
    """0.1 to 1.9; 1 leaves the image as it is, less takes colour, contrast or sharpness away."""
    return magnitude / 10 * 1.8 + 0.1


def _rotate(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    """By up to 30 degrees, counter-clockwise for sign 1."""
    return image.rotate(sign * magnitude * 3.0, Image.Resampling.BICUBIC, fillcolor=FILL)


def _shear_x(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    """The pixel at (x, y) is taken from (x + factor * y, y), with a factor of up to 0.3."""
    matrix = (1, sign * magnitude / 10 * 0.3, 0, 0, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def _auto_contrast(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    return ImageOps.invert(image)


OPERATIONS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "auto_contrast": _auto_contrast,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "rotate": _rotate,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "solarize": _solarize,
}
