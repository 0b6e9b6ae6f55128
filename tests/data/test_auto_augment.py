"""Each operation against a slow version of itself, the table against the paper, draws against their probabilities."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from accel_train.data import auto_augment as module
from accel_train.data.auto_augment import (
    FILL,
    OPERATIONS,
    POLICY,
    auto_augment,
    enhance_factor,
    posterize_bits,
    solarize_threshold,
)
from accel_train.data.transforms import sample_generator

PAPER = """
Posterize 0.4 8 Rotate 0.6 9 | Solarize 0.6 5 AutoContrast 0.6 5 | Equalize 0.8 8 Equalize 0.6 3
Posterize 0.6 7 Posterize 0.6 6 | Equalize 0.4 7 Solarize 0.2 4 | Equalize 0.4 4 Rotate 0.8 8
Solarize 0.6 3 Equalize 0.6 7 | Posterize 0.8 5 Equalize 1.0 2 | Rotate 0.2 3 Solarize 0.6 8
Equalize 0.6 8 Posterize 0.4 6 | Rotate 0.8 8 Color 0.4 0 | Rotate 0.4 9 Equalize 0.6 2
Equalize 0.0 7 Equalize 0.8 8 | Invert 0.6 4 Equalize 1.0 8 | Color 0.6 4 Contrast 1.0 8
Rotate 0.8 8 Color 1.0 2 | Color 0.8 8 Solarize 0.8 7 | Sharpness 0.4 7 Invert 0.6 8
ShearX 0.6 5 Equalize 1.0 9 | Color 0.4 0 Equalize 0.6 3 | Equalize 0.4 7 Solarize 0.2 4
Solarize 0.6 5 AutoContrast 0.6 5 | Invert 0.6 4 Equalize 1.0 8 | Color 0.6 4 Contrast 1.0 8
Equalize 0.8 8 Equalize 0.6 3
"""
"""Table 9 of arXiv:1805.09501 as it is printed: name, probability and magnitude of both operations."""


def photograph(seed: int = 0, size: int = 24) -> Image.Image:
    """Smooth colours with some noise, not over the whole range of values."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    noise = np.random.default_rng(seed).integers(-20, 21, (size, size, 3))
    pixels = np.stack([60 + 120 * x, 40 + 150 * y, 100 + 80 * x * y], axis=-1) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def applied(name: str, magnitude: int = 0, sign: int = 1, image: Image.Image | None = None) -> np.ndarray:
    return values(OPERATIONS[name](image or photograph(), magnitude, sign))


def test_the_policy_is_the_papers() -> None:
    words = [row.split() for row in PAPER.strip().replace("\n", "|").split("|")]
    flat = [
        name.lower().replace("_", "") + f" {chance} {magnitude}" for sub in POLICY for name, chance, magnitude in sub
    ]
    assert flat == [f"{row[at].lower()} {row[at + 1]} {row[at + 2]}" for row in words for at in (0, 3)]
    assert len(POLICY) == 25 and {name for sub in POLICY for name, _, _ in sub} == set(OPERATIONS)


def test_magnitudes() -> None:
    assert [posterize_bits(magnitude) for magnitude in (0, 5, 6, 7, 8, 10)] == [4, 6, 6, 6, 7, 8]
    assert [solarize_threshold(magnitude) for magnitude in (0, 3, 4, 5, 7, 8, 10)] == [0, 76, 102, 128, 179, 204, 256]
    assert [enhance_factor(magnitude) for magnitude in (0, 2, 4, 5, 7, 8, 10)] == pytest.approx(
        [0.1, 0.46, 0.82, 1.0, 1.36, 1.54, 1.9]
    )
    assert tuple(round(255 * mean) for mean in (0.48145466, 0.4578275, 0.40821073)) == FILL


@pytest.mark.parametrize(("magnitude", "step"), [(8, 2), (7, 4), (5, 4)])
def test_posterize_clears_the_low_bits(magnitude: int, step: int) -> None:
    assert np.array_equal(applied("posterize", magnitude), values(photograph()) // step * step)


@pytest.mark.parametrize(("magnitude", "threshold"), [(3, 76), (4, 102), (5, 128), (7, 179), (8, 204)])
def test_solarize_inverts_from_the_threshold_on(magnitude: int, threshold: int) -> None:
    before = values(photograph())
    assert np.array_equal(applied("solarize", magnitude), np.where(before < threshold, before, 255 - before))


def test_invert() -> None:
    assert np.array_equal(applied("invert", 4), 255 - values(photograph()))


def test_auto_contrast_stretches_each_colour() -> None:
    before = values(photograph()).reshape(-1, 3)
    lowest, highest = before.min(axis=0), before.max(axis=0)
    wanted = (before - lowest) * 255 / (highest - lowest)
    assert np.abs(applied("auto_contrast", 5).reshape(-1, 3) - wanted).max() <= 1


def test_equalize_makes_each_colour_uniform() -> None:
    image = photograph(size=128)  # Pillow's steps are whole numbers of pixels, so a small image is stretched too far
    found, before = applied("equalize", 8, image=image), values(image)
    for colour in range(3):
        assert np.quantile(found[..., colour], [0.25, 0.5, 0.75]) == pytest.approx([64, 128, 191], abs=8)
        order = np.argsort(before[..., colour].ravel())
        assert (np.diff(found[..., colour].ravel()[order]) >= 0).all()


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize(("magnitude", "factor"), [(0, 0.1), (2, 0.46), (4, 0.82), (8, 1.54)])
def test_colour_goes_from_grey_to_more(magnitude: int, factor: float) -> None:
    before = values(photograph())
    grey = luma(before)[..., None]
    assert np.abs(applied("color", magnitude) - (grey + factor * (before - grey)).clip(0, 255)).max() < 2


def test_contrast_goes_from_mean_grey_to_more() -> None:
    before = values(photograph())
    mean = luma(before).mean()
    assert np.abs(applied("contrast", 8) - (mean + 1.54 * (before - mean)).clip(0, 255)).max() < 2


def test_sharpness_goes_from_smooth_to_more() -> None:
    before = values(photograph())
    weights = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inner = [weights[i, j] * before[i : 22 + i, j : 22 + j] for i in range(3) for j in range(3)]
    smooth = np.sum(inner, axis=0)
    wanted = (smooth + 1.36 * (before[1:-1, 1:-1] - smooth)).clip(0, 255)
    assert np.abs(applied("sharpness", 7)[1:-1, 1:-1] - wanted).max() < 2


def dot(x: int, y: int, size: int = 41) -> Image.Image:
    """A bright square of 3 x 3 pixels around (x, y) on black."""
    image = Image.new("RGB", (size, size))
    image.paste((255, 255, 255), (x - 1, y - 1, x + 2, y + 2))
    return image


def brightest(pixels: np.ndarray) -> np.ndarray:
    """Where the dot is: the centre of what is brighter than the fill colour, as (x, y)."""
    weights = (pixels.min(axis=-1) > 125) * pixels.sum(axis=-1)
    rows, columns = np.indices(weights.shape)
    return np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()


@pytest.mark.parametrize(("magnitude", "degrees"), [(3, 9), (8, 24), (9, 27)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_is_about_the_middle(magnitude: int, degrees: int, sign: int) -> None:
    """A dot to the right of the middle goes up for sign 1: counter-clockwise, as rows are counted from the top."""
    found = applied("rotate", magnitude, sign, dot(32, 20))
    angle = math.radians(sign * degrees)
    assert brightest(found) == pytest.approx([20 + 12 * math.cos(angle), 20 - 12 * math.sin(angle)], abs=0.3)
    assert found[0, 0].tolist() == found[-1, -1].tolist() == list(FILL)


@pytest.mark.parametrize("sign", [1, -1])
def test_shear_moves_rows_the_more_the_lower_they_are(sign: int) -> None:
    """(x, y) is taken from (x + 0.15 y, y), seen from the centres of pixels."""
    for y in (5, 20, 35):
        found = applied("shear_x", 5, sign, dot(20, y))
        assert brightest(found) == pytest.approx([20 - sign * 0.15 * (y + 0.5), y], abs=0.3)
    corner = found[-1, -1] if sign == 1 else found[-1, 0]
    assert corner.tolist() == list(FILL)


def test_every_sub_policy_and_operation_comes_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that only write down their name: what was drawn for 20,000 samples."""
    drawn: list[tuple[str, int, int]] = []

    def write_down(name: str) -> None:
        def operation(image: Image.Image, magnitude: int, sign: int) -> Image.Image:
            drawn.append((name, magnitude, sign))
            return image

        monkeypatch.setitem(OPERATIONS, name, operation)

    for name in list(OPERATIONS):
        write_down(name)
    image, count = photograph(), 20_000
    for sample in range(count):
        auto_augment(image, sample_generator("image", 0, 0, sample))
    wanted: Counter[tuple[str, int]] = Counter()
    for sub_policy in POLICY:
        for name, probability, magnitude in sub_policy:
            wanted[name, magnitude] += probability / len(POLICY)
    found = Counter((name, magnitude) for name, magnitude, _ in drawn)
    assert ("equalize", 7) in wanted and set(found) <= set(wanted)
    for key, rate in wanted.items():
        assert abs(found[key] / count - rate) < 4 * math.sqrt(rate / count) + 1e-9, key
    signs = Counter(sign for name, _, sign in drawn if name in ("rotate", "shear_x"))
    assert abs(signs[1] / (signs[1] + signs[-1]) - 0.5) < 0.03


def test_each_sub_policy_is_drawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With certain operations the result is one sub-policy's, in its order, and each of the 25 comes as often."""
    certain = tuple(((f"first {at}", 1.0, 0), (f"second {at}", 1.0, 0)) for at in range(25))
    drawn: list[str] = []
    monkeypatch.setattr(module, "POLICY", certain)
    names = [name for sub in certain for name, _, _ in sub]
    monkeypatch.setattr(
        module, "OPERATIONS", {name: lambda image, _, sign, name=name: drawn.append(name) or image for name in names}
    )
    for seed in range(5000):
        auto_augment(photograph(), random.Random(seed))
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    assert set(pairs) == {(f"first {at}", f"second {at}") for at in range(25)}
    assert max(pairs.values()) < 260 and min(pairs.values()) > 145


def test_the_same_draws_give_the_same_image() -> None:
    images = [auto_augment(photograph(), sample_generator("image", 1, epoch, 7)) for epoch in (0, 0, 1, 2, 3)]
    assert images[0].size == (24, 24) and images[0].mode == "RGB"
    assert np.array_equal(values(images[0]), values(images[1]))
    assert len({image.tobytes() for image in images}) >= 3
