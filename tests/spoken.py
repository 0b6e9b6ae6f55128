"""Spoken images made on the spot: a square of a colour, a tone whose pitch goes with the colour, and words for it."""

import base64
import io
import json
import wave
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from accel_train.tools.imports.speech import import_speech

COLOURS = {"red": (210, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (220, 200, 40)}
PLACES = ("left", "right", "top")
PITCHES = {"red": 300.0, "green": 600.0, "blue": 1200.0, "yellow": 2000.0}
RATE = 8000


def picture(colour: str, place: str, seed: int) -> bytes:
    """PNG of 20 by 20 pixels, half of them of the colour."""
    random = np.random.default_rng(seed)
    pixels = np.full((20, 20, 3), 255, dtype=np.uint8)
    part = {"left": np.s_[:, :10], "right": np.s_[:, 10:], "top": np.s_[:10]}[place]
    pixels[part] = np.clip(np.array(COLOURS[colour]) + random.integers(-20, 20, 3), 0, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tone(colour: str, place: str, seed: int) -> bytes:
    """A WAV file of 0.2 to 0.4 seconds: a tone that gets louder, softer, or stays."""
    random = np.random.default_rng(seed)
    time = np.arange(int(RATE * random.uniform(0.2, 0.4))) / RATE
    loudness = {
        "left": np.linspace(1, 0.1, len(time)),
        "right": np.linspace(0.1, 1, len(time)),
        "top": np.ones(len(time)),
    }
    samples = 0.5 * loudness[place] * np.sin(2 * np.pi * PITCHES[colour] * time) + random.normal(0, 0.01, len(time))
    return wav(np.round(samples * 32767).astype("<i2").tobytes(), width=2, rate=RATE, channels=1)


def wav(data: bytes, *, width: int, rate: int, channels: int) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return stream.getvalue()


def write_source(folder: Path, *, train: int = 53, valid: int = 12) -> Path:
    """{train,valid}.jsonl, wav/ and train_imgs.tsv, valid_imgs.tsv in `folder`."""
    (folder / "wav").mkdir(parents=True)
    number = 0
    for split, count in (("train", train), ("valid", valid)):
        lines, images = [], []
        for index in range(count):
            colour, place = list(COLOURS)[index % 4], PLACES[index // 4 % 3]
            (folder / "wav" / f"{number}.wav").write_bytes(tone(colour, place, number))
            images.append(f"{number}\t{base64.b64encode(picture(colour, place, number)).decode()}\n")
            row = {
                "image_id": number,
                "audio": f"wav/{number}.wav",
                "text": f"{colour} {place}",
                "text_zh": f"色{index}",
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        (folder / f"{split}_imgs.tsv").write_text("".join(images), encoding="utf-8")
    return folder


def write_dataset(folder: Path, *, train: int = 53, valid: int = 12) -> Path:
    """An imported dataset with the splits train and valid, and a tokenizer of 60 tokens or fewer."""
    source = write_source(folder.with_name(f"{folder.name}_source"), train=train, valid=valid)
    import_speech(str(source), str(folder), images=str(source), build_tokenizer=60, show_progress=False)
    return folder


def write_decoder(folder: Path, vocab_size: int = 200) -> Path:
    """A LLaMA of random weights, as a folder for model.llm.pretrained."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
