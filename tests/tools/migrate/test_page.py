"""docs/migrate.md is true: its commands run one after the other, and its table is the program's."""

import io
import os
import re
import shlex
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from pickle import dumps

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from accel_train.config.key_names import all_keys
from accel_train.config.multimodal_llm import MultimodalLlmConfig
from accel_train.config.scorer import ScorerConfig
from accel_train.config.sequence_classification import SequenceClassificationConfig
from accel_train.tools.migrate.options import NOT_NEEDED, OPTIONS
from tests.models.originals import ChineseCLIP, VisualTransformer, saved
from tests.short_runs import metrics

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
CHARACTERS = [chr(0x4E00 + number) for number in range(95)]
SCRIPT = """
DATAPATH=${1}
python3 -m torch.distributed.launch --use_env --nproc_per_node=1 cn_clip/training/main.py \\
    --train-data=${DATAPATH}/datasets/MUGE/lmdb/train --val-data=${DATAPATH}/datasets/MUGE/lmdb/valid \\
    --resume=${DATAPATH}/pretrained_weights/clip_cn_vit-b-16.pt --reset-optimizer --reset-data-offset \\
    --batch-size=4 --accum-freq=8 --max-steps=2 --warmup=1 --log-interval=1 --precision=fp32 --context-length=12 \\
    --num-workers=0 --use-augment
"""


def write_lmdb(folder: Path, count: int) -> None:
    """One split as the original's build_lmdb_dataset.py writes it."""
    generator = np.random.default_rng(0)
    for part in ("imgs", "pairs"):
        (folder / part).mkdir(parents=True)
        environment = lmdb.open(str(folder / part), map_size=1 << 24)
        with environment.begin(write=True) as transaction:
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
                caption = "".join(generator.choice(CHARACTERS, 5))
                value = b64encode(stream.getvalue()) if part == "imgs" else dumps((number, number, caption))
                transaction.put(str(number).encode(), value)
            transaction.put(b"num_images" if part == "imgs" else b"num_samples", str(count).encode())
        environment.close()


@pytest.fixture
def folder_of_the_original(tmp_path: Path) -> Path:
    """Data, weights, vocabulary and script where a user of the original has them, all tiny."""
    for split, count in (("train", 64), ("valid", 8)):
        write_lmdb(tmp_path / "data" / "datasets" / "MUGE" / "lmdb" / split, count)
    weights = tmp_path / "data" / "pretrained_weights" / "clip_cn_vit-b-16.pt"
    weights.parent.mkdir()
    torch.save({"epoch": 0, "step": 0, "state_dict": saved(ChineseCLIP(VisualTransformer(grid=7, patch=32)))}, weights)
    vocabulary = tmp_path / "cn_clip" / "clip" / "vocab.txt"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]) + "\n")
    (tmp_path / "run_scripts").mkdir()
    (tmp_path / "run_scripts" / "finetune.sh").write_text(SCRIPT)
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(folder_of_the_original: Path) -> None:
    blocks = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert [shlex.split(command)[1] for command in commands] == ["migrate", "import", "plan", "train", "migrate"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "accel-train"
        done = subprocess.run(
            [sys.executable, "-m", "accel_train", *arguments],
            cwd=folder_of_the_original,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    run_dir = folder_of_the_original / "logs" / "train_clip"
    assert len(metrics(run_dir, "train")) == 2
    assert 0 <= metrics(run_dir, "valid")[-1]["text_to_image_recall@1"] <= 1


def shown(default: object) -> str:
    return "" if default is None else "off" if default is False else str(default)


def test_the_table_is_the_programs() -> None:
    wanted = [
        (
            f"`--{option.name}`",
            shown(option.default),
            option.key if option.key == NOT_NEEDED else ", ".join(f"`{key}`" for key in option.key.split(", ")),
            option.note,
        )
        for option in OPTIONS
    ]
    assert re.findall(r"^\| (`--\S+`) \| (.*?) ?\| (.*) \| (.*) \|$", PAGE, re.MULTILINE) == wanted


def test_options_of_other_scripts_lead_to_keys_that_exist() -> None:
    tasks = (ScorerConfig, MultimodalLlmConfig, SequenceClassificationConfig)
    known = {key for config in tasks for key in all_keys(config)}
    rows = re.findall(r"^\| (.*?) \| (.*?) ?\| .* \|$", PAGE.split("## Options of other scripts")[1], re.MULTILINE)[1:]
    named = {key for _, keys in rows for key in re.findall(r"`(\S+)`", keys)}
    assert len(named) > 15 and named <= known
