"""A dataset of eight tiny images with two captions each, some shared, and a run configuration for it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer

CAPTIONS = ["红色的花", "一只猫", "笑脸", "red flower", "大树 tree", "汽车", "蓝天白云", "月亮"]


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    folder, splits = tmp_path / "dataset", {}
    for split in ("train", "valid"):
        writer = SplitWriter(folder / split)
        for index in range(8):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            writer.add_image(f"image{index}", stream.getvalue())
        for index, caption in enumerate(CAPTIONS):
            writer.add_text(f"text{index}", caption, [index, (index + 1) % 8])
        splits[split] = writer.close()
    save_tokenizer(caption_vocabulary(CAPTIONS, 1000), folder / "tokenizer")
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "splits": splits}))
    return folder


@pytest.fixture
def make_config(dataset_folder: Path) -> Callable[..., ContrastiveConfig]:
    def make(model: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, **data: Any) -> ContrastiveConfig:
        sizes = {"image_size": 32, "max_text_length": 12, "global_batch_size": 8, "micro_batch_size": 8}
        return ContrastiveConfig.model_validate(
            {
                "run_dir": "runs/test",
                "max_steps": 1,
                "model": model or {"type": "chinese_clip", "size": "tiny"},
                "loss": loss or {},
                "data": {"path": str(dataset_folder), "tokenizer": "dataset:tokenizer"} | sizes | data,
                "optimizer": {"towers": [{"name": "all", "layers": [".*"], "lr": 1e-3}]},
            }
        )

    return make
