import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from accel_train.data import fast_jpeg
from accel_train.data.fast_jpeg import fast_decoded
from accel_train.data.transforms import UnreadableImage, decode, evaluation_image, open_image, training_image

pytest.importorskip("simplejpeg")


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 90 + 120
    stream = io.BytesIO()
    image = Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("shrink", [1, 1.5, 2, 2.7, 3.1, 4, 5, 8, 20])
def test_pixels_are_pillows_at_every_scale(shrink: float, progressive: bool, subsampling: int) -> None:
    data = jpeg(333, 250, progressive=progressive, subsampling=subsampling)
    size = round(250 / shrink)
    wanted = np.asarray(decode(open_image(data), size=size))
    found = fast_decoded(data, open_image(data), size, size)
    assert found is not None
    assert np.array_equal(found[..., :3], wanted)


@pytest.mark.parametrize("crop_scale", [None, [0.1, 0.9]])
def test_training_images_do_not_depend_on_the_package(
    monkeypatch: pytest.MonkeyPatch, crop_scale: list[float] | None
) -> None:
    data = jpeg(700, 500)

    def images() -> torch.Tensor:
        options = {"crop_scale": crop_scale, "crop_aspect": [0.75, 1.33], "horizontal_flip": 0.5, "decoding": "fast"}
        drawn = [training_image(data, 48, "crop", generator=random.Random(k), **options) for k in range(8)]  # type: ignore[arg-type]
        return torch.stack([*drawn, evaluation_image(data, 48, "squash", "fast")])

    with_package = images()
    monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    assert torch.equal(images(), with_package)


def test_other_images_are_left_to_pillow() -> None:
    for data in (jpeg(40, 30, "L"), jpeg(40, 30, "CMYK")):
        assert fast_decoded(data, open_image(data), 8, 8) is None
        assert evaluation_image(data, 16, "squash", "fast").shape == (3, 16, 16)


def test_damage_is_told_as_without_the_package() -> None:
    data = jpeg(400, 300)
    for broken in (data[: len(data) // 2], data[:-400]):
        assert fast_decoded(broken, open_image(broken), 50, 50) is None
        with pytest.raises(UnreadableImage, match="does not decode"):
            evaluation_image(broken, 50, "squash", "fast")
