"""A small dataset with everything that real ones have: shared images, shared captions, images that can't be read."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer

NUM_IMAGES = 40
NUM_PAIRS = 53
CAPTIONS = ["红色的花", "一只猫", "笑脸", "大树", "蓝色汽车", "蓝天白云", "两只狗", "小船", "月亮", "下雨", "雪人"]
DAMAGED = (4, 17, 31)
"""Images of the split `damaged` that can't be read; image 4 has two captions."""


def write_pairs(folder: Path) -> Path:
    """Splits train, valid and damaged. Pair k shows image k % 40 with one of eleven captions."""
    splits = {}
    for split, num_images, num_pairs, damaged in (
        ("train", NUM_IMAGES, NUM_PAIRS, ()),
        ("valid", 7, 9, ()),
        ("damaged", NUM_IMAGES, NUM_PAIRS, DAMAGED),
    ):
        writer = SplitWriter(folder / split)
        for index in range(num_images):
            writer.add_image(f"img{index}", b"not an image" if index in damaged else _image(index))
        for index in range(num_pairs):
            writer.add_text(f"txt{index}", CAPTIONS[index % len(CAPTIONS)], [index % num_images])
        splits[split] = writer.close()
    save_tokenizer(caption_vocabulary(CAPTIONS, 1000), folder / "tokenizer")
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "splits": splits}))
    return folder


def _image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
