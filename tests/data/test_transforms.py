import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from accel_train.data.auto_augment import auto_augment
from accel_train.data.transforms import (
    MAX_PIXELS,
    WHOLE,
    Box,
    UnreadableImage,
    central_square,
    decode,
    evaluation_image,
    open_image,
    random_box,
    sample_generator,
    to_tensor,
    training_image,
)


def smooth_image(width: int, height: int) -> Image.Image:
    """A gradient with a disc: no noise, so that decoding at a smaller scale changes little."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    disc = ((x - 0.3) ** 2 + (y - 0.6) ** 2 < 0.04) * 255
    return Image.fromarray(np.stack([x * 255, y * 255, disc], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


SHAPES = [(200, 120), (64, 64), (33, 150), (20, 30), (1, 1), (500, 3), (96, 96), (32, 32)]


def noisy_image(width: int, height: int) -> Image.Image:
    """The gradient with noise on it: hard edges everywhere, where filters overshoot."""
    noise = np.random.default_rng(0).integers(-60, 60, (height, width, 3))
    return Image.fromarray((np.asarray(smooth_image(width, height)) + noise).clip(0, 255).astype(np.uint8))


def as_pixels(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("width", "height"), [*SHAPES, (700, 500)])
def test_squash_is_pillows_bicubic_bit_for_bit(width: int, height: int, kind: str) -> None:
    """As torchvision's Resize((32, 32), BICUBIC) does it to a Pillow image, however large: no JPEG is drafted."""
    data = encoded(noisy_image(width, height), kind)
    wanted = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BICUBIC))
    found = evaluation_image(data, 32, "squash")
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32) and found.is_contiguous()
    assert np.array_equal(as_pixels(found), wanted)


@pytest.mark.parametrize(
    ("width", "height", "scaled_size", "left", "top"),
    [
        (200, 120, (53, 32), 10, 0),  # 53.33 is cut, not rounded; the middle is at 10.5, and half goes to even
        (120, 203, (32, 54), 0, 11),
        (37, 32, (37, 32), 2, 0),
        (35, 32, (35, 32), 2, 0),
        (64, 64, (32, 32), 0, 0),
        (700, 500, (44, 32), 6, 0),
        (20, 10, (64, 32), 16, 0),
    ],
)
def test_crop_scales_the_shorter_side_and_cuts_out_the_middle(
    width: int, height: int, scaled_size: tuple[int, int], left: int, top: int
) -> None:
    """As torchvision's Resize(32, BICUBIC) and CenterCrop(32)."""
    data = encoded(noisy_image(width, height), "JPEG")
    whole = Image.open(io.BytesIO(data)).resize(scaled_size, Image.Resampling.BICUBIC)
    wanted = np.asarray(whole.crop((left, top, left + 32, top + 32)))
    assert np.array_equal(as_pixels(evaluation_image(data, 32, "crop")), wanted)


def test_an_image_too_narrow_to_cut_a_square_from_is_refused() -> None:
    data = encoded(Image.new("RGB", (100_000, 1)))
    with pytest.raises(UnreadableImage, match="100000 x 1 is too narrow to be scaled and cut to 224"):
        evaluation_image(data, 224, "crop")
    assert evaluation_image(data, 224, "squash").shape == (3, 224, 224)


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_fast_squash_is_the_same_filter(width: int, height: int) -> None:
    image = noisy_image(width, height)
    # Pillow may take the rows first; with clamping between the passes the order shows at hard edges.
    rows_last = image.resize((32, height), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
    found = evaluation_image(encoded(image), 32, "squash", "fast")
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32) and found.is_contiguous()
    difference = np.abs(as_pixels(found) - np.asarray(rows_last))
    assert difference.max() <= 2 and difference.mean() < 0.05


def test_fast_crop_takes_the_central_square() -> None:
    image = smooth_image(200, 120)
    wanted = np.asarray(image.crop((40, 0, 160, 120)).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(as_pixels(evaluation_image(encoded(image), 32, "crop", "fast")) - wanted).max() <= 1
    assert central_square(120, 200) == Box(0.0, 0.2, 1.0, 0.6)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_fast_drafts_large_jpegs_and_they_look_the_same(scale: int) -> None:
    data = encoded(smooth_image(64 * scale, 48 * scale), "JPEG", quality=95)
    assert decode(open_image(data), size=40).size == (64, 48)
    drafted = encoded(decode(open_image(data), size=32))
    whole = encoded(decode(open_image(data)))
    found = evaluation_image(data, 32, "squash", "fast")
    assert torch.equal(found, evaluation_image(drafted, 32, "squash", "fast"))
    assert (found.int() - evaluation_image(whole, 32, "squash", "fast").int()).abs().float().mean() < 1.5
    # To the eye alone: training on every bit of a picture has to ask for it.
    assert torch.equal(evaluation_image(data, 32, "squash"), evaluation_image(whole, 32, "squash"))


def test_a_small_crop_is_not_drafted_below_the_size_asked_for() -> None:
    data = encoded(smooth_image(800, 800), "JPEG")
    assert decode(open_image(data), Box(0.5, 0.5, 0.25, 0.25), 100).size == (100, 100)
    assert decode(open_image(data), Box(0.5, 0.5, 0.125, 0.125), 100).size == (100, 100)
    assert decode(open_image(data), Box(0.5, 0.5, 0.0625, 0.0625), 100).size == (50, 50)
    assert decode(open_image(data), WHOLE, 100).size == (100, 100)


@pytest.mark.parametrize("decoding", ["exact", "fast"])
def test_images_of_many_megabytes_come_out_the_same(decoding: str) -> None:
    """Pillow keeps more than 16 MiB in several parts, which can't be looked at without a copy."""
    image = smooth_image(2100, 2050)
    found = evaluation_image(encoded(image, "PPM"), 64, "squash", decoding)  # type: ignore[arg-type]
    wanted = to_tensor(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert (found.int() - wanted.int()).abs().max() <= 2


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 2, 4))
    image.paste((0, 0, 0, 128), (2, 0, 3, 4))
    pixels = np.asarray(decode(open_image(encoded(image))))
    assert pixels[0].tolist() == [[0, 0, 255], [0, 0, 255], [127, 127, 127], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "RGBA", "RGB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (6, 5), 128)
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 6), 128 * 257, dtype=np.uint16))
    elif mode == "P":
        image = grey.quantize(4)
    else:
        image = grey.convert("RGB").convert(mode)
    pixels = np.asarray(decode(open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))))
    assert pixels.shape == (5, 6, 3)
    assert mode == "1" or np.abs(pixels.astype(int) - 128).max() <= 2


def test_palette_transparency_does_not_warn() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    data = encoded(image, "PNG", transparency=b"\x00\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(decode(open_image(data))).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_known_formats_open(kind: str) -> None:
    assert evaluation_image(encoded(smooth_image(40, 30), kind), 16, "squash").shape == (3, 16, 16)


def test_what_is_no_image_is_refused() -> None:
    jpeg = encoded(smooth_image(100, 100), "JPEG")
    for data in (b"", b"hello", jpeg[:10], encoded(smooth_image(9, 9), "ICO"), encoded(smooth_image(9, 9), "EPS")):
        with pytest.raises(UnreadableImage, match=r"not an image of a known format|header is damaged"):
            open_image(data)
    for data in (jpeg[:-200], encoded(smooth_image(60, 60))[:-100]):
        with pytest.raises(UnreadableImage, match="does not decode"):
            decode(open_image(data), size=10)


@pytest.mark.parametrize("side", [9_000, 10_000, 30_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    assert side * side > MAX_PIXELS
    header = b"P6 %d %d 255\n" % (side, side)
    with pytest.raises(UnreadableImage, match="more than 64,000,000 pixels"):
        open_image(header + bytes(100))


def test_crops_stay_inside_and_keep_to_area_and_aspect() -> None:
    generator = random.Random(0)
    areas = []
    for _ in range(2000):
        box = random_box(200, 100, [0.1, 0.6], [0.75, 4 / 3], generator)
        assert 0 <= box.left <= box.left + box.width <= 1 + 1e-9
        assert 0 <= box.top <= box.top + box.height <= 1 + 1e-9
        assert 0.75 - 1e-9 <= box.width * 200 / (box.height * 100) <= 4 / 3 + 1e-9
        areas.append(box.width * box.height)
    assert min(areas) >= 0.1 - 1e-9 and max(areas) <= 0.6 + 1e-9
    assert np.quantile(areas, 0.1) < 0.2 and np.quantile(areas, 0.9) > 0.4


def test_a_shape_that_never_fits_falls_back_to_the_centre() -> None:
    assert random_box(100, 100, [1.0, 1.0], [1.9, 2.0], random.Random(0)) == pytest.approx(
        (0, 0.5 - 1 / 3.8, 1, 1 / 1.9)
    )
    assert random_box(1000, 10, [0.9, 1.0], [0.75, 4 / 3], random.Random(0)).height == 1


def test_draws_depend_on_seed_epoch_sample_and_purpose_alone() -> None:
    draws = {
        sample_generator(purpose, seed, epoch, sample).random()
        for purpose in ("image", "text")
        for seed in (0, 1)
        for epoch in (0, 1)
        for sample in (0, 1)
    }
    assert len(draws) == 16
    assert sample_generator("image", 1, 2, 3).random() == sample_generator("image", 1, 2, 3).random()


def augmented(data: bytes, size: int, sample: int = 0, **changes: object) -> torch.Tensor:
    """A training image with everything off that is not asked for."""
    options: dict[str, object] = {"crop_scale": None, "crop_aspect": [1, 1], "horizontal_flip": 0.0}
    options |= {"auto_augment": False, "generator": sample_generator("image", 0, 0, sample)} | changes
    return training_image(data, size, "squash", **options)


def test_flip_and_no_crop() -> None:
    data = encoded(smooth_image(50, 40))
    plain = evaluation_image(data, 32, "squash")
    flipped = augmented(data, 32, horizontal_flip=1.0)
    assert torch.equal(flipped, plain.flip(-1)) and flipped.is_contiguous()
    assert torch.equal(augmented(data, 32), plain)


def test_flips_come_at_their_rate_whatever_else_is_on() -> None:
    data = encoded(smooth_image(16, 16))

    def is_flipped(sample: int, crop_scale: list[float] | None) -> bool:
        pixels = augmented(data, 16, sample, crop_scale=crop_scale, horizontal_flip=0.3)
        return bool(pixels[0, 8, 0] > pixels[0, 8, -1])

    flips = [is_flipped(sample, None) for sample in range(400)]
    assert abs(sum(flips) / 400 - 0.3) < 0.07
    assert flips == [is_flipped(sample, [0.8, 1.0]) for sample in range(400)]


@pytest.mark.parametrize("decoding", ["exact", "fast"])
@pytest.mark.parametrize("crop_scale", [None, [0.3, 0.9]])
def test_auto_augment_comes_last_and_leaves_the_other_draws_alone(
    crop_scale: list[float] | None, decoding: str
) -> None:
    data = encoded(noisy_image(50, 40))
    options = {"crop_scale": crop_scale, "horizontal_flip": 0.5, "decoding": decoding}
    changed = 0
    for sample in range(20):
        before = augmented(data, 24, sample, **options)
        after = augmented(data, 24, sample, auto_augment=True, **options)
        generator = sample_generator("image", 0, 0, sample)
        generator.random()
        if crop_scale is not None:
            random_box(50, 40, crop_scale, [1, 1], generator)
        wanted = auto_augment(Image.fromarray(before.permute(1, 2, 0).numpy()), generator)
        assert torch.equal(after, to_tensor(wanted))
        assert torch.equal(after, augmented(data, 24, sample, auto_augment=True, **options))
        changed += not torch.equal(before, after)
    assert 10 <= changed < 20
