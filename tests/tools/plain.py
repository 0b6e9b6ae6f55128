"""Features of an exported model by transformers alone, one input at a time."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoTokenizer, ChineseCLIPModel

MAX_TEXT_LENGTH = 16


@torch.no_grad()
def image_features(folder: str, images: list[bytes]) -> Tensor:
    """(n, D), unit length."""
    model = ChineseCLIPModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, use_fast=False)
    rows = []
    for encoded in images:
        pixels = processor(Image.open(io.BytesIO(encoded)), return_tensors="pt")["pixel_values"]
        pooled = model.vision_model(pixel_values=pixels).pooler_output
        rows.append(normalize(model.visual_projection(pooled), dim=1))
    return torch.cat(rows)


@torch.no_grad()
def text_features(folder: str, texts: list[str]) -> Tensor:
    """(n, D), unit length."""
    model = ChineseCLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=MAX_TEXT_LENGTH, return_tensors="pt")
        hidden = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        rows.append(normalize(model.text_projection(hidden.last_hidden_state[:, 0]), dim=1))
    return torch.cat(rows)


def write_images(folder: Path, images: dict[str, bytes]) -> None:
    for name, encoded in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded)
