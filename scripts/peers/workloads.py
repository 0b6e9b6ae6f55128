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
"""Processes of a comparison on a CPU."""
TEXT_LENGTH, VOCAB_SIZE = 52, 21128
LR, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.001
CLASSIFIER = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
CLASSIFIER_BATCH, CLASSIFIER_LENGTH = 80, 64
WARMUP_STEPS = 2
COMPILED, ONE_THREAD = {"compile": True}, {"num_threads": 1}
GPU_TABLE_REPEATS = 50
"""open_clip starts its loader's workers anew in every epoch: on a GPU the table is so long that none begins meanwhile."""


@dataclass(frozen=True, slots=True)
class Tower:
    layers: int
    width: int
    heads: int

    def sizes(self) -> dict[str, int]:
        """In the words of transformers."""
        return {
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
        }


@dataclass(frozen=True, slots=True)
class Scale:
    """What is trained in a contrastive comparison, and on what."""

    image: Tower
    text: Tower
    projection: int
    image_size: int
    patch_size: int
    global_batch: int
    ranks: int
    on_gpu: bool = False
    """bf16 and compiled on one CUDA device, with loader workers; else fp32 on CPU cores without."""
    workers: int = 0
    kept_graphs: int = 1
    """Of our cached step: as many as the device's memory holds."""

    def micro_batch(self, accumulate: int) -> int:
        return self.global_batch // self.ranks // accumulate


SMALL = Scale(Tower(6, 256, 4), Tower(4, 256, 4), 256, 64, 16, 128, RANKS)
VIT_B_16 = Scale(Tower(12, 768, 12), Tower(12, 512, 8), 512, 224, 16, 1024, 1, on_gpu=True, workers=12)


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
    ranks: int = RANKS
    is_ragged: bool = False
    """Steps differ in cost by what is in them, so their mean counts and not their median."""


def accel_train(*arguments: str) -> None:
    command = [sys.executable, "-m", "accel_train", *arguments]
    subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.DEVNULL)


def our_run(folder: Path, name: str, steps: int, **sections: Any) -> dict[str, Any]:
    """A configuration that trains and does nothing else, on one thread if nothing else is said."""
    return {
        "run_dir": str(folder / "runs" / name),
        "max_steps": steps,
        "schedule": {"name": "cosine", "warmup_steps": WARMUP_STEPS},
        "checkpoint": {"save_every": None},
        "compute": ONE_THREAD,
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
    scale: Scale, folder: Path, name: str, steps: int, accumulate: int, model: dict[str, Any], **data: Any
) -> dict[str, Any]:
    """Our configuration of a contrastive run on emoji-zh."""
    return our_run(
        folder,
        name,
        steps,
        compute=COMPILED | {"kept_graphs": scale.kept_graphs} if scale.on_gpu else ONE_THREAD,
        precision="bf16" if scale.on_gpu else "fp32",
        model=model,
        data={
            "path": str(folder / "pairs"),
            "valid_split": None,
            "image_size": scale.image_size,
            "max_text_length": TEXT_LENGTH,
            "global_batch_size": scale.global_batch,
            "micro_batch_size": scale.micro_batch(accumulate),
            "num_workers": scale.workers,
            # Fewer lengths are fewer shapes to compile for.
            "pad_to_multiple_of": 8 if scale.on_gpu else 1,
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
        "embed_dim": SMALL.projection,
        "image_resolution": SMALL.image_size,
        "vision_layers": SMALL.image.layers,
        "vision_width": SMALL.image.width,
        "vision_patch_size": SMALL.patch_size,
    }
    sizes = copy / "cn_clip/clip/model_configs"
    text = json.loads((checkout / "cn_clip/clip/model_configs/RBT3-chinese.json").read_text()) | {
        "text_hidden_size": SMALL.text.width,
        "text_intermediate_size": 4 * SMALL.text.width,
        "text_num_attention_heads": SMALL.text.heads,
        "text_num_hidden_layers": SMALL.text.layers,
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
        "batch-size": SMALL.micro_batch(accumulate),
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
        SMALL,
        folder,
        name,
        steps,
        accumulate,
        {
            "type": "chinese_clip",
            "size": "vit_b_16_rbt3",
            "config": {
                "projection_dim": SMALL.projection,
                "vision_config": SMALL.image.sizes(),
                "text_config": SMALL.text.sizes(),
            },
        },
        tokenizer=str(vocabulary),
        text_cleaning="chinese_clip",
    )
    command = Command("run_chinese_clip.py", [options_file(folder, name, arguments)], [copy])
    return Workload(name, ours, command, SMALL.global_batch)


def options_file(folder: Path, name: str, arguments: dict[str, Any], *switches: str) -> str:
    """A file with a peer's command line, because torchrun takes some of these options for its own."""
    path = folder / f"{name}_options.json"
    path.write_text(json.dumps([*(f"--{key}={value}" for key, value in arguments.items()), *switches]))
    return str(path)


def open_clip(
    checkout: Path,
    source: Path,
    vocabulary: Path,
    folder: Path,
    steps: int,
    accumulate: int,
    *,
    scale: Scale,
    variable_text: bool,
) -> Workload:
    """Its trainer on a CSV of the same images as files; the captions are cut by the same WordPiece vocabulary."""
    import_pairs(source, folder)
    table, tokenizer = folder / "pairs.csv", folder / "bert_tokenizer"
    if not table.exists():
        BertTokenizerFast(str(vocabulary), eos_token="[SEP]", bos_token="[CLS]").save_pretrained(tokenizer)
        write_files(source, folder / "images", table, GPU_TABLE_REPEATS if scale.on_gpu else 1)
    name = f"open_clip{'_variable_text' if variable_text else ''}_accumulate_{accumulate}"
    sizes = {
        "embed_dim": scale.projection,
        "quick_gelu": True,
        "custom_text": variable_text,
        "vision_cfg": {
            "image_size": scale.image_size,
            "layers": scale.image.layers,
            "width": scale.image.width,
            "head_width": scale.image.width // scale.image.heads,
            "patch_size": scale.patch_size,
        },
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": VOCAB_SIZE,
            "hf_tokenizer_name": str(tokenizer),
            "variable_text": variable_text,
            "width": scale.text.width,
            "heads": scale.text.heads,
            "layers": scale.text.layers,
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
        "workers": scale.workers,
        "logs": folder / "runs",
        "name": f"peer_{name}",
        "batch-size": scale.micro_batch(accumulate),
        "accum-freq": accumulate,
        "epochs": steps,  # its length is in epochs alone: it is left after as many steps
        "lr": LR,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": EPS,
        "wd": WEIGHT_DECAY,
        "warmup": WARMUP_STEPS,
        "precision": "amp_bf16" if scale.on_gpu else "fp32",
        "device": "cuda" if scale.on_gpu else "cpu",
        "dist-backend": "nccl" if scale.on_gpu else "gloo",
        "log-every-n-steps": 10,
        "save-frequency": 0,
    }
    # Every rank works on its own rows of the similarities, with the exact gradient: its authors' advice.
    switches = ["--local-loss", "--gather-with-grad", *(["--torchcompile"] if scale.on_gpu else [])]
    options = options_file(folder, name, arguments, *switches)
    ours = contrastive(
        scale,
        folder,
        name,
        steps,
        accumulate,
        {"type": "clip", "size": "vit_b_16", "config": clip_sizes(scale)},
        tokenizer=str(vocabulary),
        augmentation={"crop_scale": [0.9, 1.0]},
    )
    command = Command("run_open_clip.py", [str(path), options, str(steps)], [checkout / "src"])
    return Workload(name, ours, command, scale.global_batch, scale.ranks)


def clip_sizes(scale: Scale) -> dict[str, Any]:
    text = {"vocab_size": VOCAB_SIZE, "bos_token_id": 101, "eos_token_id": 102, "max_position_embeddings": TEXT_LENGTH}
    return {
        "projection_dim": scale.projection,
        "vision_config": scale.image.sizes(),
        "text_config": scale.text.sizes() | text,
    }


def write_files(source: Path, images: Path, table: Path, repeats: int) -> None:
    """Every image of the training split as a file, and a table of its captions, so many times over."""
    images.mkdir(exist_ok=True)
    for line in (source / "train_imgs.tsv").read_text(encoding="utf-8").splitlines():
        name, encoded = line.split("\t")
        (images / f"{name}.jpg").write_bytes(base64.urlsafe_b64decode(encoded))
    rows: list[str] = []
    for line in (source / "train_texts.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        title = record["text"].replace('"', '""')
        rows += [f'{images / f"{name}.jpg"},"{title}"' for name in record["image_ids"]]
    table.write_text("\n".join(["filepath,title", *rows * repeats]) + "\n", encoding="utf-8")


def sentence_transformers(source: Path, vocabulary: Path, folder: Path, steps: int, accumulate: int) -> Workload:
    """Its Trainer and cached loss on transformers' CLIP, which is the model of our side too."""
    import_pairs(source, folder)
    name = f"sentence_transformers_accumulate_{accumulate}"
    model = folder / "clip"
    if not model.exists():
        sizes = clip_sizes(SMALL)
        sizes["vision_config"] |= {"image_size": SMALL.image_size, "patch_size": SMALL.patch_size}
        CLIPModel(CLIPConfig(**sizes)).save_pretrained(model)
    settings = {
        "model": str(model),
        "source": str(source),
        "vocabulary": str(vocabulary),
        "image_size": SMALL.image_size,
        "text_length": TEXT_LENGTH,
        "per_device_batch": SMALL.micro_batch(1),
        "mini_batch": SMALL.micro_batch(accumulate),
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
        SMALL,
        folder,
        name,
        steps,
        accumulate,
        {"type": "clip", "size": "vit_b_16", "config": clip_sizes(SMALL)},
        tokenizer=str(vocabulary),
        sort_by_length=True,
    )
    return Workload(name, ours, Command("run_sentence_transformers.py", [str(path)]), SMALL.global_batch)
