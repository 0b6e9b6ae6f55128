import io
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize(("width", "height"), [(200, 120), (64, 64), (33, 150), (20, 30), (1, 1), (500, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_squash_is_pillows_bicubic_to_the_bit(width: int, height: int, kind: str) -> None:
    data = encoded(smooth_image(width, height), kind)
    wanted = Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BICUBIC)
    found = evaluation_image(data, 32, "squash")
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32) and found.is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(wanted))


@pytest.mark.parametrize(("width", "height"), [(200, 120), (64, 64), (33, 150), (20, 30), (1, 1), (500, 3)])
def test_fast_squash_is_bicubic_too(width: int, height: int) -> None:
    image = smooth_image(width, height)
    # Pillow may take the rows first; with clamping between the passes the order shows at hard edges.
    rows_last = image.resize((32, height), Image.Resampling.BICUBIC).resize((32, 32), Image.Resampling.BICUBIC)
    wanted = np.asarray(rows_last).astype(int)
    found = evaluation_image(encoded(image), 32, "squash", "fast")
    assert found.dtype == torch.uint8 and found.shape == (3, 32, 32) and found.is_contiguous()
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def test_crop_takes_the_central_square() -> None:
    image = smooth_image(200, 120)
    wanted = np.asarray(image.crop((40, 0, 160, 120)).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    found = evaluation_image(encoded(image), 32, "crop").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert central_square(120, 200) == Box(0.0, 0.2, 1.0, 0.6)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_large_jpegs_are_drafted_and_look_the_same(scale: int) -> None:
    data = encoded(smooth_image(64 * scale, 48 * scale), "JPEG", quality=95)
    drafted = decode(open_image(data), size=40)
    assert drafted.size == (64, 48)
    small = to_tensor(drafted, 32, decoding="fast")
    whole = to_tensor(decode(open_image(data)), 32, decoding="fast")
    assert (small.int() - whole.int()).abs().float().mean() < 1.5
    # To the eye alone: training on every bit of a picture has to ask for it.
    assert torch.equal(evaluation_image(data, 32, "squash"), to_tensor(decode(open_image(data)), 32))
    assert torch.equal(
        evaluation_image(data, 32, "squash", "fast"), to_tensor(decode(open_image(data), size=32), 32, decoding="fast")
    )


def test_a_small_crop_is_not_drafted_below_the_size_asked_for() -> None:
    data = encoded(smooth_image(800, 800), "JPEG")
    assert decode(open_image(data), Box(0.5, 0.5, 0.25, 0.25), 100).size == (100, 100)
    assert decode(open_image(data), Box(0.5, 0.5, 0.125, 0.125), 100).size == (100, 100)
    assert decode(open_image(data), Box(0.5, 0.5, 0.0625, 0.0625), 100).size == (50, 50)
    assert decode(open_image(data), WHOLE, 100).size == (100, 100)


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


def test_flip_and_no_crop() -> None:
    data = encoded(smooth_image(32, 32))
    plain = evaluation_image(data, 32, "squash")
    options = {"crop_scale": None, "crop_aspect": [0.75, 4 / 3]}
    flipped = training_image(data, 32, "squash", horizontal_flip=1.0, generator=random.Random(0), **options)
    kept = training_image(data, 32, "squash", horizontal_flip=0.0, generator=random.Random(0), **options)
    assert torch.equal(flipped, plain.flip(-1)) and flipped.is_contiguous()
    assert torch.equal(kept, plain)


def test_flips_come_at_their_rate_whatever_the_crop() -> None:
    data = encoded(smooth_image(16, 16))

    def is_flipped(sample: int, crop_scale: list[float] | None) -> bool:
        generator = sample_generator("image", 0, 0, sample)
        pixels = training_image(
            data, 16, "squash", crop_scale=crop_scale, crop_aspect=[1, 1], horizontal_flip=0.3, generator=generator
        )
        return bool(pixels[0, 8, 0] > pixels[0, 8, -1])

    flips = [is_flipped(sample, None) for sample in range(400)]
    assert abs(sum(flips) / 400 - 0.3) < 0.07
    assert flips == [is_flipped(sample, [0.8, 1.0]) for sample in range(400)]
