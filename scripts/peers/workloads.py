"""What is compared: for each workload our configuration, and the same in the peer's own words, written into a folder."""

import base64
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import BertTokenizerFast, CLIPConfig, CLIPModel

HERE = Path(__file__).parent
RANKS = 2
WIDTH, IMAGE_LAYERS, TEXT_LAYERS, HEADS, PROJECTION = 256, 6, 4, 4, 256
IMAGE_SIZE, PATCH_SIZE, TEXT_LENGTH = 64, 16, 52
GLOBAL_BATCH, LR, BETAS, EPS, WEIGHT_DECAY = 128, 1e-4, (0.9, 0.98), 1e-6, 0.001
CLASSIFIER = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
CLASSIFIER_BATCH, CLASSIFIER_LENGTH = 80, 64
WARMUP_STEPS = 2


@dataclass
class Command:
    """A script of this folder under torchrun, with what it must find on PYTHONPATH."""

    script: str
    arguments: list[str]
    paths: list[Path] = field(default_factory=list)


@dataclass
class Workload:
    """One comparison. The peer's command is without the file that takes its times."""

    name: str
    ours: dict[str, Any]
    peer: Command
    samples: int
    """In one optimizer step."""
    is_ragged: bool = False
    """Steps differ in cost by what is in them, so their mean counts and not their median."""


def accel_train(*arguments: str) -> None:
    command = [sys.executable, "-m", "accel_train", *arguments]
    subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.DEVNULL)


def our_run(folder: Path, name: str, steps: int, **sections: Any) -> dict[str, Any]:
    """A configuration that trains and does nothing else."""
    return {
        "run_dir": str(folder / "runs" / name),
        "max_steps": steps,
        "schedule": {"name": "cosine", "warmup_steps": WARMUP_STEPS},
        "checkpoint": {"save_every": None},
        "compute": {"num_threads": 1},
    } | sections


def classification(source: Path, folder: Path, steps: int, sampling: str) -> Workload:
    """A small LLaMA on one-line texts of 4 to 24 tokens, against transformers' Trainer."""
    data = folder / "labelled"
    if not data.exists():
        accel_train("import", str(source), str(data), "--task=sequence_classification", "--build-tokenizer=8000")
    settings = {
        "texts": str(source / "train.txt"),
        "tokenizer": str(data / "tokenizer"),
        "max_text_length": CLASSIFIER_LENGTH,
        "model": CLASSIFIER,
        "per_device_batch": CLASSIFIER_BATCH // RANKS,
        "max_steps": steps,
        "sampling": sampling,
        "output": str(folder / "runs" / "hf_trainer"),
    }
    name = f"hf_trainer_{sampling}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    ours = our_run(
        folder,
        name,
        steps,
        task="sequence_classification",
        model={"architecture": "llama", "config": CLASSIFIER},
        data={
            "path": str(data),
            "valid_split": None,
            "tokenizer": "dataset:tokenizer",
            "max_text_length": CLASSIFIER_LENGTH,
            "length_window": 20,
            "global_batch_size": CLASSIFIER_BATCH,
            "micro_batch_size": CLASSIFIER_BATCH // RANKS,
            "num_workers": 0,
        },
        optimizer={
            "betas": [0.9, 0.98],
            "eps": EPS,
            "weight_decay": 0.05,
            "max_grad_norm": 1.0,
            "towers": [{"name": "decoder", "lr": 2e-3, "layers": "llama"}],
        },
    )
    return Workload(name, ours, Command("run_hf_trainer.py", [str(path)]), CLASSIFIER_BATCH, is_ragged=True)


def contrastive(
    folder: Path, name: str, steps: int, accumulate: int, model: dict[str, Any], **data: Any
) -> dict[str, Any]:
    """Our configuration of a contrastive run on emoji-zh."""
    return our_run(
        folder,
        name,
        steps,
        model=model,
        data={
            "path": str(folder / "pairs"),
            "valid_split": None,
            "image_size": IMAGE_SIZE,
            "max_text_length": TEXT_LENGTH,
            "global_batch_size": GLOBAL_BATCH,
            "micro_batch_size": GLOBAL_BATCH // RANKS // accumulate,
            "num_workers": 0,
        }
        | data,
        loss={"positives": "own"},
        optimizer={
            "betas": list(BETAS),
            "eps": EPS,
            "weight_decay": WEIGHT_DECAY,
            "towers": [{"name": "all", "lr": LR, "layers": [".*"]}],
        },
    )


def import_pairs(source: Path, folder: Path) -> None:
    if not (folder / "pairs").exists():
        accel_train("import", str(source), str(folder / "pairs"))


def chinese_clip(checkout: Path, source: Path, vocabulary: Path, folder: Path, steps: int, accumulate: int) -> Workload:
    """Its trainer on its LMDB of the same pairs, with the model's sizes put into a copy of its package."""
    import_pairs(source, folder)
    copy = folder / "chinese_clip"
    shutil.copytree(checkout / "cn_clip", copy / "cn_clip", dirs_exist_ok=True)
    image = {
        "embed_dim": PROJECTION,
        "image_resolution": IMAGE_SIZE,
        "vision_layers": IMAGE_LAYERS,
        "vision_width": WIDTH,
        "vision_patch_size": PATCH_SIZE,
    }
    sizes = copy / "cn_clip/clip/model_configs"
    text = json.loads((checkout / "cn_clip/clip/model_configs/RBT3-chinese.json").read_text()) | {
        "text_hidden_size": WIDTH,
        "text_intermediate_size": 4 * WIDTH,
        "text_num_attention_heads": HEADS,
        "text_num_hidden_layers": TEXT_LAYERS,
    }
    (sizes / "ViT-B-16.json").write_text(json.dumps(image))
    (sizes / "RBT3-chinese.json").write_text(json.dumps(text))
    if not (folder / "lmdb").exists():
        builder = [sys.executable, str(copy / "cn_clip/preprocess/build_lmdb_dataset.py")]
        builder += ["--data_dir", str(source), "--splits", "train", "--lmdb_dir", str(folder / "lmdb")]
        subprocess.run(builder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    name = f"chinese_clip_accumulate_{accumulate}"
    arguments = {
        "train-data": folder / "lmdb" / "train",
        "num-workers": 0,
        "logs": folder / "runs",
        "name": f"peer_{name}",
        "batch-size": GLOBAL_BATCH // RANKS // accumulate,
        "accum-freq": accumulate,
        "max-steps": steps,
        "context-length": TEXT_LENGTH,
        "lr": LR,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPS,
        "wd": WEIGHT_DECAY,
        "warmup": WARMUP_STEPS,
        "precision": "fp32",
        "vision-model": "ViT-B-16",
        "text-model": "RBT3-chinese",
        "save-epoch-frequency": 0,
    }
    ours = contrastive(
        folder,
        name,
        steps,
        accumulate,
        {
            "type": "chinese_clip",
            "size": "vit_b_16_rbt3",
            "config": {
                "projection_dim": PROJECTION,
                "vision_config": _tower(IMAGE_LAYERS),
                "text_config": _tower(TEXT_LAYERS),
            },
        },
        tokenizer=str(vocabulary),
        text_cleaning="chinese_clip",
    )
    command = Command("run_chinese_clip.py", [options_file(folder, name, arguments)], [copy])
    return Workload(name, ours, command, GLOBAL_BATCH)


def options_file(folder: Path, name: str, arguments: dict[str, Any], *switches: str) -> str:
    """A file with a peer's command line, because torchrun takes some of these options for its own."""
    path = folder / f"{name}_options.json"
    path.write_text(json.dumps([*(f"--{key}={value}" for key, value in arguments.items()), *switches]))
    return str(path)


def _tower(layers: int) -> dict[str, int]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
    }


def open_clip(
    checkout: Path, source: Path, vocabulary: Path, folder: Path, steps: int, accumulate: int, variable_text: bool
) -> Workload:
    """Its trainer on a CSV of the same images as files; the captions are cut by the same WordPiece vocabulary."""
    import_pairs(source, folder)
    table, tokenizer = folder / "pairs.csv", folder / "bert_tokenizer"
    if not table.exists():
        BertTokenizerFast(str(vocabulary), eos_token="[SEP]", bos_token="[CLS]").save_pretrained(tokenizer)
        write_files(source, folder / "images", table)
    name = f"open_clip{'_variable_text' if variable_text else ''}_accumulate_{accumulate}"
    sizes = {
        "embed_dim": PROJECTION,
        "quick_gelu": True,
        "custom_text": variable_text,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": IMAGE_LAYERS,
            "width": WIDTH,
            "head_width": WIDTH // HEADS,
            "patch_size": PATCH_SIZE,
        },
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": 21128,
            "hf_tokenizer_name": str(tokenizer),
            "variable_text": variable_text,
            "width": WIDTH,
            "heads": HEADS,
            "layers": TEXT_LAYERS,
            "pool_type": "eos",
            "eos_id": 102,
        },
    }
    path = folder / f"{name.replace('open_clip', 'measured_clip')}.json"
    path.write_text(json.dumps(sizes))
    arguments = {
        "model": path.stem,
        "train-data": table,
        "dataset-type": "csv",
        "csv-separator": ",",
        "workers": 0,
        "logs": folder / "runs",
        "name": f"peer_{name}",
        "batch-size": GLOBAL_BATCH // RANKS // accumulate,
        "accum-freq": accumulate,
        "epochs": steps,  # its length is in epochs alone: it is left after as many steps
        "lr": LR,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPS,
        "wd": WEIGHT_DECAY,
        "warmup": WARMUP_STEPS,
        "precision": "fp32",
        "device": "cpu",
        "dist-backend": "gloo",
        "log-every-n-steps": 10,
        "save-frequency": 0,
    }
    # Every rank works on its own rows of the similarities, with the exact gradient: its authors' advice.
    options = options_file(folder, name, arguments, "--local-loss", "--gather-with-grad")
    ours = contrastive(
        folder,
        name,
        steps,
        accumulate,
        {"type": "clip", "size": "vit_b_16", "config": clip_sizes()},
        tokenizer=str(vocabulary),
        augmentation={"crop_scale": [0.9, 1.0]},
    )
    command = Command("run_open_clip.py", [str(path), options, str(steps)], [checkout / "src"])
    return Workload(name, ours, command, GLOBAL_BATCH)


def clip_sizes() -> dict[str, Any]:
    text = {"vocab_size": 21128, "bos_token_id": 101, "eos_token_id": 102, "max_position_embeddings": TEXT_LENGTH}
    return {
        "projection_dim": PROJECTION,
        "vision_config": _tower(IMAGE_LAYERS),
        "text_config": _tower(TEXT_LAYERS) | text,
    }


def write_files(source: Path, images: Path, table: Path) -> None:
    """Every image of the training split as a file, and a table of its captions."""
    images.mkdir(exist_ok=True)
    for line in (source / "train_imgs.tsv").read_text(encoding="utf-8").splitlines():
        name, encoded = line.split("\t")
        (images / f"{name}.jpg").write_bytes(base64.urlsafe_b64decode(encoded))
    rows = ["filepath,title"]
    for line in (source / "train_texts.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        title = record["text"].replace('"', '""')
        rows += [f'{images / f"{name}.jpg"},"{title}"' for name in record["image_ids"]]
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")


def sentence_transformers(source: Path, vocabulary: Path, folder: Path, steps: int, accumulate: int) -> Workload:
    """Its Trainer and cached loss on transformers' CLIP, which is the model of our side too."""
    import_pairs(source, folder)
    name = f"sentence_transformers_accumulate_{accumulate}"
    model = folder / "clip"
    if not model.exists():
        sizes = clip_sizes()
        sizes["vision_config"] |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
        CLIPModel(CLIPConfig(**sizes)).save_pretrained(model)
    settings = {
        "model": str(model),
        "source": str(source),
        "vocabulary": str(vocabulary),
        "image_size": IMAGE_SIZE,
        "text_length": TEXT_LENGTH,
        "per_device_batch": GLOBAL_BATCH // RANKS,
        "mini_batch": GLOBAL_BATCH // RANKS // accumulate,
        "max_steps": steps,
        "learning_rate": LR,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        "warmup_steps": WARMUP_STEPS,
        "output": str(folder / "runs" / "sentence_transformers"),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    ours = contrastive(
        folder,
        name,
        steps,
        accumulate,
        {"type": "clip", "size": "vit_b_16", "config": clip_sizes()},
        tokenizer=str(vocabulary),
        sort_by_length=True,
    )
    return Workload(name, ours, Command("run_sentence_transformers.py", [str(path)]), GLOBAL_BATCH)
