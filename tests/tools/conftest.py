"""An exported model with random weights, and the dataset it belongs to: enough for every command on trained models."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.load import dump_config
from accel_train.data.arrow_split import FORMAT_VERSION
from accel_train.data.arrow_writer import SplitWriter
from accel_train.data.text import caption_vocabulary, save_tokenizer
from accel_train.tasks.build import build_task
from accel_train.tools.trained import EXPORT_CONFIG

CAPTIONS = ["红色的花", "一只猫", "笑脸", "red flower", "大树 tree", "汽车", "蓝天白云", "月亮"]
NUM_IMAGES = 11
NUM_TEXTS = 17
BATCH_SIZE = 3


def encoded_image(seed: int) -> bytes:
    """A PNG of 40 x 32 pixels of noise on a colour of its own."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 200, 3) + generator.integers(0, 56, (32, 40, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "pairs"
    writer = SplitWriter(folder / "valid")
    for index in range(NUM_IMAGES):
        writer.add_image(f"img{index}", encoded_image(index))
    for index in range(NUM_TEXTS):
        writer.add_text(f"txt{index}", CAPTIONS[index % len(CAPTIONS)] + "一" * (index // 8), [index % NUM_IMAGES])
    save_tokenizer(caption_vocabulary(CAPTIONS, 1000), folder / "tokenizer")
    described = {"format_version": FORMAT_VERSION, "splits": {"valid": writer.close()}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return str(folder)


@pytest.fixture(scope="session")
def exported(pairs_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as `accel-train export` writes it. Its features differ clearly between inputs."""
    config = ContrastiveConfig.model_validate(
        {
            "run_dir": "runs/test",
            "max_steps": 1,
            "model": {
                "type": "chinese_clip",
                "size": "tiny",
                "config": {"vision_config": {"initializer_range": 0.3}, "text_config": {"initializer_range": 0.3}},
            },
            "data": {
                "path": pairs_folder,
                "tokenizer": "dataset:tokenizer",
                "image_size": 32,
                "max_text_length": 16,
                "global_batch_size": BATCH_SIZE,
                "micro_batch_size": BATCH_SIZE,
                "num_workers": 0,
            },
            "optimizer": {"towers": [{"name": "all", "layers": [".*"], "lr": 1e-3}]},
        }
    )
    torch.manual_seed(0)
    task = build_task(config)
    folder = tmp_path_factory.mktemp("exported") / "model"
    task.export(task.build_model(), str(folder))
    (folder / EXPORT_CONFIG).write_text(dump_config(config), encoding="utf-8")
    return str(folder)
