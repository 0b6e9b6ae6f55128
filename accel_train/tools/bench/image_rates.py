"""Images a CPU-second: decode, random crop and collate, beside what torchvision's transforms do to a Pillow image.

torchvision has no build for the CPU beside this torch, so a stand-in takes its place that makes the same calls in the same
order: Image.open and convert, RandomResizedCrop (crop, then Pillow's bicubic resize), RandomHorizontalFlip, ToTensor,
Normalize, and a stack over the batch. It gives normalised floats; ours gives bytes, normalised on the device by the model.
"""

import base64
import io
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from accel_train.config.inputs import CropAndFlip, ImageInput
from accel_train.data.arrow_split import IN_PLACE_SCHEMAS, SCHEMAS, ArrowRows, Rows
from accel_train.data.arrow_writer import TableWriter, content_key
from accel_train.data.augmented_image import image_of_row
from accel_train.data.in_place import ImagesInPlace, LmdbImages, TsvImages
from accel_train.data.padding import Padding, join
from accel_train.data.transforms import Decoding, open_image, random_box

BATCH = 16
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
CROP = CropAndFlip(crop_scale=[0.9, 1.0], horizontal_flip=0.5)


def photographs(width: int, count: int = 8, quality: int = 90) -> list[bytes]:
    """JPEGs of 4 : 3 with a photograph's statistics: amplitudes fall with the frequency, colours vary less than light."""
    height = width * 3 // 4
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean
    encoded = []
    for seed in range(count):
        real, imaginary = np.random.default_rng(seed).standard_normal((2, 3, *frequency.shape))
        planes = np.fft.irfft2((real + 1j * imaginary) / frequency**1.3, (height, width))
        light, blue, red = planes / planes.std((1, 2), keepdims=True)
        colours = np.stack([light + 0.3 * red, light - 0.1 * blue - 0.2 * red, light + 0.4 * blue], -1)
        stream = io.BytesIO()
        Image.fromarray((120 + 55 * colours).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
        encoded.append(stream.getvalue())
    return encoded


def as_torchvision(encoded: bytes, size: int, generator: random.Random) -> Tensor:
    """(3, size, size) fp32: what its transforms do to one image."""
    image = open_image(encoded).convert("RGB")
    box = random_box(image.width, image.height, (0.9, 1.0), (3 / 4, 4 / 3), generator)
    left, top = round(box.left * image.width), round(box.top * image.height)
    width, height = round(box.width * image.width), round(box.height * image.height)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(MEAN).div_(STD)


def arrow_images(folder: Path, encoded: list[bytes]) -> Rows:
    """The images as `accel-train import` stores them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = TableWriter(folder / "images.arrow", SCHEMAS["images"])
    for row, image in enumerate(encoded):
        table.append(str(row), image, content_key(image))
    table.close()
    return ArrowRows(folder / "images.arrow", SCHEMAS["images"])


def tsv_images(folder: Path, encoded: list[bytes]) -> Rows:
    """The images in a TSV file of Chinese-CLIP, with the index of a source that is read in place."""
    folder.mkdir(parents=True, exist_ok=True)
    table, place = TableWriter(folder / "index.arrow", IN_PLACE_SCHEMAS["images"]), 0
    with (folder / "train_imgs.tsv").open("wb") as file:
        for row, image in enumerate(encoded):
            text, name = base64.b64encode(image), b"%d\t" % row
            file.write(name + text + b"\n")
            table.append(str(row), place + len(name), len(text), content_key(image))
            place += len(name) + len(text) + 1
    table.close()
    return ImagesInPlace(
        ArrowRows(folder / "index.arrow", IN_PLACE_SCHEMAS["images"]), TsvImages(folder / "train_imgs.tsv")
    )


def lmdb_images(folder: Path, encoded: list[bytes]) -> Rows:
    """The images in an LMDB of Chinese-CLIP, with the index of a source that is read in place."""
    import lmdb  # an extra of this package

    folder.mkdir(parents=True, exist_ok=True)
    table = TableWriter(folder / "index.arrow", IN_PLACE_SCHEMAS["images"])
    with lmdb.open(str(folder / "imgs"), map_size=2**30) as source, source.begin(write=True) as transaction:
        for row, image in enumerate(encoded):
            text = base64.b64encode(image)
            transaction.put(b"%d" % row, text)
            table.append(str(row), 0, len(text), content_key(image))
    table.close()
    return ImagesInPlace(ArrowRows(folder / "index.arrow", IN_PLACE_SCHEMAS["images"]), LmdbImages(folder / "imgs"))


def batch_of_ours(images: Rows, size: int, decoding: Decoding) -> Tensor:
    """BATCH training images as the loader's workers make and join them, (BATCH, 3, size, size) uint8."""
    options = ImageInput(image_size=size, decoding=decoding)
    made = [
        image_of_row(images, row % len(images), options, CROP, split="train", seed=0, epoch=0, sample=row)
        for row in range(BATCH)
    ]
    return join([{"pixel_values": pixels[None]} for pixels in made], Padding())["pixel_values"]


def batch_of_torchvision(encoded: list[bytes], size: int) -> Tensor:
    """BATCH images as torchvision makes them, (BATCH, 3, size, size) fp32."""
    return torch.stack([as_torchvision(encoded[row % len(encoded)], size, random.Random(row)) for row in range(BATCH)])


def cpu_seconds_in_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU-seconds of each way in every round, on one thread. Each is called once before."""
    threads, seconds = torch.get_num_threads(), {name: list[float]() for name in ways}
    torch.set_num_threads(1)
    for action in ways.values():
        action()
    for _ in range(rounds):
        for name, action in ways.items():
            start = time.process_time()
            action()
            seconds[name].append(time.process_time() - start)
    torch.set_num_threads(threads)
    return seconds
