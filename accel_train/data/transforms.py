"""Encoded image to uint8 tensor: decode, crop, scale, flip, AutoAugment. Normalisation is left to the device.

`exact` decodes the whole image and takes Pillow's bicubic filter, pixel for pixel what torchvision's transforms and with
them the original Chinese-CLIP give. `fast` takes half the time, and less for large photographs: torch's filter, which
rounds differently, and JPEGs much larger than needed decoded at 1/2, 1/4 or 1/8 of their size, by simplejpeg where it is
installed. Pixels are copied as rarely as the libraries let us: at these sizes each copy costs as much as a filter's pass.
"""

import hashlib
import io
import math
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from accel_train.data.auto_augment import auto_augment as auto_augmented
from accel_train.data.fast_jpeg import fast_decoded

MAX_PIXELS = 64_000_000
"""Larger images are refused: a few kB can claim to be gigabytes of pixels."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that Pillow may open. Others are refused: some, such as EPS, start other programs."""
CROP_ATTEMPTS = 10
Resize = Literal["squash", "crop"]
Decoding = Literal["exact", "fast"]


class UnreadableImage(Exception):
    """Bytes that are not an image we can decode; the message says why."""


class Box(NamedTuple):
    """A part of an image, as shares of its width and height from the left and the top."""

    left: float
    top: float
    width: float
    height: float


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def open_image(data: bytes) -> Image.Image:
    """Reads the header alone. Raises UnreadableImage for unknown formats and for too many pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # damaged headers raise many kinds, also SyntaxError and struct.error
        raise UnreadableImage(f"its header is damaged ({error!r})") from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
    return image


def decode(image: Image.Image, box: Box = WHOLE, size: int | None = None) -> Image.Image:
    """Pixels of `box` in RGB, transparency over white. With `size`, possibly shrunk, but not below size x size."""
    try:
        if size is not None:
            image.draft("RGB", (math.ceil(size / box.width), math.ceil(size / box.height)))
        image.load()
        whole = _rgb(image)
        return whole if box == WHOLE else whole.crop(_pixels(box, image.width, image.height))
    except Exception as error:  # as in open_image: every decoder fails in its own way
        raise UnreadableImage(f"does not decode ({error!r})") from error


def _pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels: at least one pixel, inside the image."""
    left, top = min(round(box.left * width), width - 1), min(round(box.top * height), height - 1)
    right = min(max(round((box.left + box.width) * width), left + 1), width)
    bottom = min(max(round((box.top + box.height) * height), top + 1), height)
    return left, top, right, bottom


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # 16-bit grey: Pillow would clip at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def central_square(width: int, height: int) -> Box:
    """The largest square in the middle."""
    side = min(width, height)
    return Box((width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height)


def random_box(
    width: int, height: int, scale: Sequence[float], aspect: Sequence[float], generator: random.Random
) -> Box:
    """RandomResizedCrop: a share of the area from `scale`, an aspect ratio log-uniform in `aspect`, any place.

    A shape that does not fit is drawn again; after ten tries the largest central box of an allowed aspect is taken.
    """
    for _ in range(CROP_ATTEMPTS):
        area = width * height * _uniform(generator, *scale)
        ratio = math.exp(_uniform(generator, math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = math.sqrt(area * ratio) / width, math.sqrt(area / ratio) / height
        if box_width <= 1 and box_height <= 1:
            left, top = _uniform(generator, 0, 1 - box_width), _uniform(generator, 0, 1 - box_height)
            return Box(left, top, box_width, box_height)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width, box_height = min(1.0, height * ratio / width), min(1.0, width / ratio / height)
    return Box((1 - box_width) / 2, (1 - box_height) / 2, box_width, box_height)


def _uniform(generator: random.Random, low: float, high: float) -> float:
    return low + (high - low) * generator.random()


def sample_generator(purpose: str, seed: int, epoch: int, sample: int) -> random.Random:
    """The source of every draw for one sample in one epoch, whichever process makes it."""
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch} {sample}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def to_tensor(pixels: Image.Image) -> Tensor:
    """(3, height, width) uint8 of an RGB image."""
    return _channels(pixels)[:3].contiguous()


def _channels(pixels: Image.Image) -> Tensor:
    """(3 or 4, height, width) uint8 over an RGB image's own memory, whose fourth channel means nothing, or over a copy."""
    try:
        flat = from_dlpack(pa.array(pixels).values)
    except ValueError:  # Pillow keeps images of more than 16 MiB in several parts
        flat = torch.from_numpy(np.array(pixels))
    return flat.view(pixels.height, pixels.width, -1).permute(2, 0, 1)


def part_scaled(data: bytes, image: Image.Image, box: Box, size: int, decoding: Decoding) -> Tensor:
    """(3, size, size) uint8: the part `box`, scaled by an antialiased bicubic filter. `image` is `data` opened."""
    if decoding == "exact":
        return to_tensor(decode(image, box).resize((size, size), Image.Resampling.BICUBIC))
    pixels = fast_decoded(data, image, math.ceil(size / box.width), math.ceil(size / box.height))
    if pixels is None:
        channels = _channels(decode(image, box, size))
    else:
        left, top, right, bottom = _pixels(box, pixels.shape[1], pixels.shape[0])
        channels = torch.from_numpy(pixels)[top:bottom, left:right].permute(2, 0, 1)
    if channels.shape[-2:] != (size, size):
        channels = interpolate(channels.unsqueeze(0), size=(size, size), mode="bicubic", antialias=True)[0]
    return channels[:3].contiguous()


def middle_scaled(data: bytes, image: Image.Image, size: int, decoding: Decoding) -> Tensor:
    """(3, size, size) uint8: the shorter side scaled to `size`, the middle of the longer one cut out. `image` as above.

    `exact` rounds as torchvision's Resize and CenterCrop do; `fast` cuts first.
    """
    if decoding == "fast":
        return part_scaled(data, image, central_square(image.width, image.height), size, decoding)
    shorter = min(image.size)
    width, height = int(size * image.width / shorter), int(size * image.height / shorter)
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} is too narrow to be scaled and cut to {size}")
    left, top = round((width - size) / 2), round((height - size) / 2)
    whole = decode(image).resize((width, height), Image.Resampling.BICUBIC)
    return to_tensor(whole.crop((left, top, left + size, top + size)))


def _unaugmented(data: bytes, image: Image.Image, size: int, resize: Resize, decoding: Decoding) -> Tensor:
    if resize == "squash":
        return part_scaled(data, image, WHOLE, size, decoding)
    return middle_scaled(data, image, size, decoding)


def evaluation_image(data: bytes, size: int, resize: Resize, decoding: Decoding = "exact") -> Tensor:
    """(3, size, size) uint8: both sides scaled to `size`, or the shorter one and the middle cut out."""
    return _unaugmented(data, open_image(data), size, resize, decoding)


def training_image(
    data: bytes,
    size: int,
    resize: Resize,
    *,
    crop_scale: Sequence[float] | None,
    crop_aspect: Sequence[float],
    horizontal_flip: float,
    auto_augment: bool = False,
    generator: random.Random,
    decoding: Decoding = "exact",
) -> Tensor:
    """(3, size, size) uint8, cropped, flipped and coloured at random; without `crop_scale` cut as for evaluation.

    Draws are made for the flip, the crop, then AutoAugment: switching one off leaves those before it as they were.
    """
    image = open_image(data)
    flip = generator.random() < horizontal_flip
    if crop_scale is not None:
        box = random_box(image.width, image.height, crop_scale, crop_aspect, generator)
        pixels = part_scaled(data, image, box, size, decoding)
    else:
        pixels = _unaugmented(data, image, size, resize, decoding)
    if flip:
        pixels = pixels.flip(-1)
    if auto_augment:
        return to_tensor(auto_augmented(Image.fromarray(pixels.permute(1, 2, 0).numpy()), generator))
    return pixels
