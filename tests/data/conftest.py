"""A small dataset with everything that real ones have: images with several captions, shared captions, spare images."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accel_train.config.contrastive import PairData
from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer

CAPTIONS = ["红色的花", "一只猫", "笑脸", "red flower", "红色的花", "大树 tree", "汽车", "蓝天白云"]


def encoded_image(seed: int, size: tuple[int, int] = (40, 32), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_dataset(folder: Path, num_images: int = 30, damaged: tuple[int, ...] = ()) -> Path:
    """Image k has captions k and k + 1 (modulo their number); texts are those captions, one for each pair."""
    splits = {}
    for split, count in (("train", num_images), ("valid", 7)):
        writer = SplitWriter(folder / split)
        for index in range(count):
            broken = split == "train" and index in damaged
            writer.add_image(f"img{index}", b"no image" if broken else encoded_image(index))
        for index in range(count * 2 - 1):  # so the last image has one caption only
            writer.add_text(f"txt{index}", CAPTIONS[(index // 2 + index % 2) % len(CAPTIONS)], [index // 2])
        splits[split] = writer.close()
    save_tokenizer(caption_vocabulary(CAPTIONS, 1000), folder / "tokenizer")
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "splits": splits}))
    return folder


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def damaged_dataset_folder(tmp_path: Path) -> Path:
    """Images 3, 4 and 5 of train can't be read: pairs 6 to 11."""
    return write_dataset(tmp_path / "damaged", damaged=(3, 4, 5))


@pytest.fixture
def data_section() -> Callable[..., PairData]:
    """A data section for a folder, with small images and a batch of 8."""

    def make(folder: Path, **changes: object) -> PairData:
        values: dict[str, object] = {
            "path": str(folder),
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 8,
            "image_size": 16,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "num_workers": 0,
        }
        return PairData.model_validate(values | changes)

    return make
