"""Training as the original Chinese-CLIP does it, in plain torch, on a source made here: what our runs are compared with.

Written from its rules: groups by the names that its own modules have, learning rate (s + 1) / w in warmup and then a half
cosine, AdamW, cross-entropy both ways between own pairs, logit_scale clamped in place after each step.
"""

import base64
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tests.models.originals import ChineseCLIP, VisualTransformer, saved, shaken

NUM_PAIRS, BATCH, STEPS, WARMUP, LENGTH = 40, 8, 20, 4, 12
LR, TEMPERATURE_LR, WEIGHT_DECAY, BETAS, EPS = 1e-3, 0.02, 0.5, (0.9, 0.98), 1e-6
LARGEST = 2.5
"""Of logit_scale. The original clamps at 4.6052; here it starts at its limit, leaves it and comes back."""
STEPS_BEFORE = 30
CHARACTERS = [chr(0x4E00 + number) for number in range(95)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

CONFIG = """
run_dir: unused
max_steps: {steps}
model:
  type: chinese_clip
  pretrained: {folder}/start.pt
  max_logit_scale: {max_logit_scale}
  config: {{text_config: {{hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}}}
data:
  path: {folder}/dataset
  valid_split: null
  tokenizer: {folder}/vocab.txt
  max_text_length: {length}
  text_cleaning: chinese_clip
  image_size: 32
  global_batch_size: {batch}
  micro_batch_size: {batch}
  shuffle: false
  num_workers: 0
loss: {{positives: own}}
optimizer:
  weight_decay: {weight_decay}
  no_decay: chinese_clip
  towers:
    - {{name: temperature, layers: ['^logit_scale$'], lr: {temperature_lr}}}
    - {{name: all, layers: ['.*'], lr: {lr}}}
schedule: {{warmup_steps: {warmup}}}
checkpoint: {{save_every: null}}
log: {{log_every: 1 step}}
"""


def write_source(folder: Path) -> None:
    """Images and captions in Chinese-CLIP's format; all captions and images differ."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    images, texts = [], []
    for number in range(NUM_PAIRS):
        pixels = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 90))
        stream = io.BytesIO()
        pixels.save(stream, "JPEG")
        images.append(f"{number}\t{base64.b64encode(stream.getvalue()).decode()}\n")
        caption = "".join(generator.choice(CHARACTERS, 3 + number % 6))
        texts.append(json.dumps({"text_id": number, "text": caption, "image_ids": [number]}) + "\n")
    (folder / "train_imgs.tsv").write_text("".join(images))
    (folder / "train_texts.jsonl").write_text("".join(texts))


def start_model(folder: Path) -> ChineseCLIP:
    """A model that has learnt a little, saved as the original saves it, with the vocabulary beside it."""
    torch.manual_seed(0)
    model = ChineseCLIP(VisualTransformer())
    shaken(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=BETAS, eps=EPS)
    pairs = read_pairs(folder / "source")
    for step in range(STEPS_BEFORE):
        optimizer.zero_grad()
        loss_of(model, pairs, step).backward()
        optimizer.step()
    model.logit_scale.data.fill_(LARGEST)
    torch.save({"epoch": 0, "step": 0, "name": "start", "state_dict": saved(model)}, folder / "start.pt")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return model


def write_config(folder: Path) -> Path:
    path = folder / "config.yaml"
    text = CONFIG.format(
        folder=folder,
        steps=STEPS,
        length=LENGTH,
        batch=BATCH,
        weight_decay=WEIGHT_DECAY,
        lr=LR,
        temperature_lr=TEMPERATURE_LR,
        warmup=WARMUP,
        max_logit_scale=math.exp(LARGEST),
    )
    path.write_text(text)
    return path


@dataclass(frozen=True, slots=True)
class Trace:
    """What the original does in STEPS steps. `logit_scales` are those after each step."""

    losses: list[float]
    logit_scales: list[float]


def train_as_the_original(folder: Path) -> Trace:
    model, pairs = start_model(folder), read_pairs(folder / "source")
    named = list(nn.ModuleDict({"module": model}).named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        spared = any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        rate = TEMPERATURE_LR if name == "module.logit_scale" else LR
        groups.setdefault((rate, 0.0 if spared else WEIGHT_DECAY), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": group, "rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
        betas=BETAS,
        eps=EPS,
    )
    trace = Trace([], [])
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * learning_rate_scale(step)
        loss = loss_of(model, pairs, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(0, LARGEST)
        trace.losses.append(loss.item())
        trace.logit_scales.append(model.logit_scale.item())
    return trace


def loss_of(model: ChineseCLIP, pairs: tuple[Tensor, Tensor], step: int) -> Tensor:
    start = step * BATCH % NUM_PAIRS
    image_features, text_features = model(*(column[start : start + BATCH] for column in pairs))
    logits = model.logit_scale.exp() * image_features @ text_features.T
    own = torch.arange(BATCH)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def learning_rate_scale(step: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def read_pairs(source: Path) -> tuple[Tensor, Tensor]:
    """Normalised pixels (n, 3, 32, 32) and token ids (n, LENGTH) in stored order."""
    images = []
    for line in (source / "train_imgs.tsv").read_text().splitlines():
        image = Image.open(io.BytesIO(base64.b64decode(line.split("\t")[1])))
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(np.float32) / 255
        images.append((torch.from_numpy(pixels) - torch.tensor(MEAN)) / torch.tensor(STD))
    rows = []
    for line in (source / "train_texts.jsonl").read_text().splitlines():
        ids = [2, *(VOCABULARY.index(character) for character in json.loads(line)["text"]), 3]
        rows.append(torch.tensor(ids + [0] * (LENGTH - len(ids))))
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), torch.stack(rows)
