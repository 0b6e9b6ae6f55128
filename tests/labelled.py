"""Labelled texts for tests: short made-up sentences whose words tell the class, of very different lengths."""

import json
import random
from pathlib import Path

from accel_train.tools.imports.texts import import_texts

TOPICS = {
    "music": ["guitar", "song", "drum", "melody", "chorus", "piano"],
    "food": ["bread", "soup", "cheese", "apple", "rice", "pepper"],
    "travel": ["train", "harbour", "ticket", "mountain", "hotel", "bridge"],
}
FILLERS = ["the", "a", "of", "with", "and", "on", "near", "old", "new", "very", "small", "plain"]
NUM_BY_SPLIT = {"train": 90, "valid": 30}


def labelled_lines(num_texts: int, seed: int) -> list[str]:
    """`label ||| text` lines, three classes in turn; every third text is long."""
    draw = random.Random(seed)
    lines = []
    for index in range(num_texts):
        label = index % len(TOPICS)
        length = draw.randint(9, 14) if draw.random() < 0.3 else draw.randint(2, 5)
        words = draw.choices(FILLERS, k=length) + draw.choices(list(TOPICS.values())[label], k=2)
        draw.shuffle(words)
        lines.append(f"{label} ||| {' '.join(words)}")
    return lines


def write_source(folder: Path, **num_by_split: int) -> Path:
    """A folder as `accel-train import` reads it: train.txt, valid.txt and label-mapping.json."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate((NUM_BY_SPLIT | num_by_split).items()):
        (folder / f"{split}.txt").write_text("\n".join(labelled_lines(count, seed)) + "\n", encoding="utf-8")
    (folder / "label-mapping.json").write_text(json.dumps(dict(enumerate(TOPICS))), encoding="utf-8")
    return folder


def write_dataset(folder: Path, **num_by_split: int) -> Path:
    """An imported dataset with a tokenizer."""
    source = write_source(folder.with_name(folder.name + "_source"), **num_by_split)
    import_texts(str(source), str(folder), build_tokenizer=200, show_progress=False)
    return folder


def small_config(dataset: Path, run_dir: Path | str, **changes: object) -> dict[str, object]:
    """A whole configuration: a LLaMA of two layers of width 32, SGD, batches of 12."""
    return {
        "task": "sequence_classification",
        "run_dir": str(run_dir),
        "max_steps": 4,
        "model": {
            "architecture": "llama",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.1,
            },
        },
        "data": {
            "path": str(dataset),
            "tokenizer": "dataset:tokenizer",
            "max_text_length": 24,
            "length_window": 3,
            "global_batch_size": 12,
            "micro_batch_size": 4,
            "num_workers": 0,
        },
        "optimizer": {"name": "sgd", "towers": [{"name": "decoder", "lr": 0.1, "layers": "llama"}]},
    } | changes
