"""From the original trainer's options to a configuration: values, the comments beside them, and what the user must know."""

import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from accel_train.errors import UserError
from accel_train.tools.migrate.options import TEXT_MODELS, Values

LARGEST_LOGIT_SCALE = round(math.exp(4.6052), 5)
"""The original clamps the logarithm to 4.6052, a little above log 100."""
NEVER = 999_999
"""The interval that the original's own scripts write for "not at all"."""
VOCABULARY = "../clip/vocab.txt"
"""The original's vocabulary, from the folder of its main.py."""

_SIZES = {
    ("ViT-B-32", 0): ("vit_b_16", {"vision_config": {"patch_size": 32}}),
    ("ViT-B-16", 0): ("vit_b_16", {}),
    ("ViT-B-16", 2): ("vit_b_16_rbt3", {}),
    ("ViT-L-14", 0): ("vit_l_14", {}),
    ("ViT-L-14-336", 0): ("vit_l_14_336", {}),
    ("ViT-H-14", 1): ("vit_h_14", {}),
    ("RN50", 2): ("rn50", {}),
}
"""(--vision-model, number of --text-model): our named size and changes to it."""
_TEXT_SIZES = (
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 12},
)
_CLIP_TEACHERS = {
    "damo/multi-modal_clip-vit-large-patch14_zh": "models/clip_cn_vit-l-14.pt",
    "damo/multi-modal_clip-vit-huge-patch14_zh": "models/clip_cn_vit-h-14.pt",
}
"""The original's teachers that are Chinese-CLIP models, and the checkpoints they are published as."""
_WIDTHS = {"vit-b": 512, "vit-l": 768, "vit-h": 1024, "rn50": 1024}
"""Of image_features, by the first letters of a model's name."""


@dataclass(slots=True)
class Migration:
    """A configuration in the making."""

    source: str
    """The folder to import: it holds the LMDB of every split."""
    settings: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    """Dotted path -> what the value comes from."""
    attention: dict[str, str] = field(default_factory=dict)
    """Option -> what will be different, in a sentence."""


def migrate_options(values: Values, ranks: int, trainer_folder: str) -> Migration:
    """The configuration with which `ranks` GPUs do what the original did. Raises UserError for what can't be done."""
    train = PurePosixPath(values["train-data"])
    migration = Migration(source=str(train.parent))
    settings = migration.settings
    settings |= {"run_dir": str(PurePosixPath(values["logs"]) / values["name"]), "seed": values["seed"]}
    settings |= _length(values)
    settings["precision"] = "fp32" if values["precision"] == "fp32" else "fp16"
    if values["logs"].lower() == "none":
        settings["run_dir"] = f"runs/{values['name']}"
        migration.attention["logs"] = "a run always writes its folder; it is under runs/."
    if values["precision"] != "fp32":
        migration.comments["precision"] = "where the GPU has bf16, it needs no loss scaling"
    if values["precision"] == "fp16":
        migration.attention["precision"] = "the original held fp16 weights; here weights stay fp32, as under amp."
    settings |= _start(values, migration)
    settings["model"] = _model(values, migration)
    settings["data"] = _data(values, ranks, trainer_folder, migration)
    settings["loss"] = {"name": "info_nce", "positives": "own"}
    migration.comments["loss.positives"] = "as the original; `shared` knows pairs with the same image or caption"
    if values["distillation"]:
        settings["distillation"] = _distillation(values, migration)
    settings["optimizer"] = _optimizer(values, migration)
    settings["schedule"] = _schedule(values, migration)
    if values["val-data"] is not None:
        settings["evaluation"] = _evaluation(values, migration)
    settings["checkpoint"] = {"save_every": _save_every(values, migration)}
    settings["log"] = {"log_every": _interval("log-interval", values["log-interval"], "step")}
    settings["compute"] = {"activation_checkpointing": values["grad-checkpointing"]}
    return migration


def _length(values: Values) -> dict[str, Any]:
    return {"num_epochs": values["max-epochs"]} if values["max-steps"] is None else {"max_steps": values["max-steps"]}


def _start(values: Values, migration: Migration) -> dict[str, Any]:
    """Weights and, beside them, what else a checkpoint of the original holds."""
    if values["resume"] is None:
        return {}
    if not values["reset-data-offset"]:
        migration.attention["resume"] = (
            "without --reset-data-offset the original goes on at the checkpoint's epoch and step. Its order of samples "
            "is not ours, so this run begins at step 0: lower its length by the steps that are done."
        )
    if values["reset-optimizer"]:
        return {}
    migration.comments["initialize_optimizer"] = "no --reset-optimizer: Adam's moments come along"
    return {"initialize_from": values["resume"], "initialize_optimizer": True}


def _model(values: Values, migration: Migration) -> dict[str, Any]:
    model: dict[str, Any] = {"type": "chinese_clip"}
    vision, text = values["vision-model"], TEXT_MODELS.index(values["text-model"])
    if values["resume"] is not None:
        model["pretrained"] = values["resume"]
        migration.comments["model.pretrained"] = (
            f"says its own size; {vision} and {values['text-model']} were asked for"
        )
        for name in ("clip-weight-path", "bert-weight-path"):
            if values[name] is not None:
                migration.attention[name] = "left out: --resume replaces these weights in the original too."
    else:
        size, changes = _SIZES.get((vision, text)) or _other_size(vision, text)
        model |= {"size": size} | ({"config": changes} if changes else {})
        for key, name in (("vision_pretrained", "clip-weight-path"), ("text_pretrained", "bert-weight-path")):
            if values[name] is not None:
                model[key] = values[name]
    if values["use-flash-attention"]:
        if values["precision"] == "fp32":
            raise UserError("--use-flash-attention needs fp16, but --precision is fp32. Take one of the two out.")
        model["attention"] = "flash_attention_2"
    if vision == "RN50":
        model["batch_norm"] = _batch_norm(values)
    elif values["use-bn-sync"]:
        migration.attention["use-bn-sync"] = f"left out: {vision} has no BatchNorm."
    if values["mask-ratio"] and vision == "RN50":
        migration.attention["mask-ratio"] = (
            "left out: the original drops no patches of a ResNet, and says so in its log."
        )
    elif values["mask-ratio"]:
        model["mask_ratio"] = values["mask-ratio"]
    model["max_logit_scale"] = LARGEST_LOGIT_SCALE
    migration.comments["model.max_logit_scale"] = "exp(4.6052), the original's clamp; 100 is meant"
    return model


def _other_size(vision: str, text: int) -> tuple[str, dict[str, Any]]:
    """A named size with another text tower."""
    size, changes = next(found for (name, _), found in _SIZES.items() if name == vision)
    return size, {**changes, "text_config": _TEXT_SIZES[text]}


def _batch_norm(values: Values) -> str:
    if values["freeze-vision"]:
        return "frozen"
    return "sync" if values["use-bn-sync"] else "local"


def _data(values: Values, ranks: int, trainer_folder: str, migration: Migration) -> dict[str, Any]:
    train = PurePosixPath(values["train-data"])
    valid = None if values["val-data"] is None else PurePosixPath(values["val-data"])
    if valid is not None and valid.parent != train.parent:
        raise UserError(
            f"--train-data is in {train.parent} and --val-data in {valid.parent}; a dataset has all its splits in one "
            "folder. Move or link one LMDB beside the other, and give both paths there."
        )
    micro, accumulation = values["batch-size"], values["accum-freq"]
    whole = micro * ranks * accumulation
    folder = train.parent.parent if train.parent.name == "lmdb" else train.parent
    if values["skip-aggregate"] and ranks > 1:
        migration.attention["skip-aggregate"] = (
            f"the original compared {micro * accumulation} pairs on each GPU alone; here all {whole} are, so losses "
            "are higher and features better. To compare fewer, lower data.global_batch_size."
        )
    comments = {
        "path": f"accel-train import {train.parent} datasets/{folder.name or 'train'}",
        "tokenizer": "the original's own vocabulary file",
        "global_batch_size": f"{micro} × {ranks} ranks × {accumulation} (--accum-freq)",
        "last_batch": "the original fills the last batch up with samples it has seen"
        if accumulation == 1
        else "the original drops what doesn't fill a step",
        "decoding": "`fast` halves the time for images, and changes their pixels a little",
    }
    migration.comments |= {f"data.{key}": text for key, text in comments.items()}
    data: dict[str, Any] = {
        "path": f"datasets/{folder.name or 'train'}",
        "train_split": train.name,
        "valid_split": valid.name if valid is not None else None,
        "tokenizer": str(_joined(trainer_folder, VOCABULARY)),
        "max_text_length": values["context-length"],
        "text_cleaning": "chinese_clip",
        "image_size": 336 if values["vision-model"].endswith("-336") else 224,
        "resize": "squash",
        "decoding": "exact",
        "global_batch_size": whole,
        "micro_batch_size": micro,
        "last_batch": "keep" if accumulation == 1 else "drop",
        "num_workers": values["num-workers"],
    }
    if values["use-augment"]:
        data["augmentation"] = {"crop_scale": [0.9, 1.0], "horizontal_flip": 0.5, "auto_augment": True}
    return data


def _joined(folder: str, relative: str) -> PurePosixPath:
    """`relative` from `folder`, without the `..`."""
    path = PurePosixPath(folder)
    for part in PurePosixPath(relative).parts:
        path = path.parent if part == ".." and path.name not in ("", "..") else path / part
    return path


def _distillation(values: Values, migration: Migration) -> dict[str, Any]:
    teacher = values["teacher-model-name"]
    if teacher is None:
        raise UserError("--distillation needs --teacher-model-name, which is missing.")
    section: dict[str, Any] = {"guides": ["image_features"], "weight": values["kd_loss_weight"]}
    if teacher in _CLIP_TEACHERS:
        file = _CLIP_TEACHERS[teacher]
        migration.attention["teacher-model-name"] = (
            f"nothing is downloaded: put this Chinese-CLIP checkpoint at {file}."
        )
        return {"teacher": file, **section}
    features = f"features/{PurePosixPath(teacher).name}"
    migration.attention["teacher-model-name"] = (
        f"{teacher} is not a model that is read here: store its image features at {features}, or take a CLIP as the teacher."
    )
    return {"features": features, **section}


def _optimizer(values: Values, migration: Migration) -> dict[str, Any]:
    lr = values["lr"]
    resnet = values["vision-model"] == "RN50"  # it projects inside the tower
    image = ["cn_clip_resnet"] if resnet else ["chinese_clip_image", "^visual_projection\\."]
    towers = [
        {"name": "image", "lr": 0.0 if values["freeze-vision"] else lr, "layers": image},
        {"name": "text", "lr": lr, "layers": ["chinese_clip_text", "^text_projection\\."]},
        {"name": "temperature", "lr": lr, "layers": ["^logit_scale$"]},
    ]
    if values["distillation"] and _teacher_width(values) != _WIDTHS[values["vision-model"][:5].lower()]:
        towers.append({"name": "teacher", "lr": lr, "layers": ["^teacher_projection\\."]})
    migration.comments["optimizer.no_decay"] = "the original's rule by name: it decays BERT's LayerNorm"
    migration.comments["optimizer.towers"] = "one rate, as in the original; each may have its own, and layer_decay"
    return {
        "name": "adamw",
        "betas": [values["beta1"], values["beta2"]],
        "eps": values["eps"],
        "weight_decay": values["wd"],
        "no_decay": "chinese_clip",
        "towers": towers,
    }


def _teacher_width(values: Values) -> int:
    """Of the teacher's features; those that are not a CLIP's are its ViT-L's."""
    file = _CLIP_TEACHERS.get(values["teacher-model-name"], "clip_cn_vit-l")
    return _WIDTHS["vit-h" if "vit-h" in file else "vit-l"]


def _schedule(values: Values, migration: Migration) -> dict[str, Any]:
    if not values["skip-scheduler"]:
        return {"name": "cosine", "warmup_steps": values["warmup"]}
    migration.attention["skip-scheduler"] = (
        "the rate is constant now, as the option says. The original reads the option and never uses it: for its numbers set "
        f"schedule.name: cosine and schedule.warmup_steps: {values['warmup']}."
    )
    return {"name": "constant"}


def _evaluation(values: Values, migration: Migration) -> dict[str, Any]:
    steps, epochs = values["valid-step-interval"], values["valid-epoch-interval"]
    every = _interval("valid-epoch-interval", epochs, "epoch") if epochs and epochs > 0 else None
    if steps is not None and 0 < steps < NEVER:
        if "valid-epoch-interval" in values.given:
            migration.attention["valid-epoch-interval"] = (
                "left out: there is one interval, and --valid-step-interval is taken."
            )
        every = _interval("valid-step-interval", steps, "step")
    return {"evaluate_every": every, "batch_size": values["valid-batch-size"]}


def _save_every(values: Values, migration: Migration) -> str:
    steps, epochs = values["save-step-frequency"], values["save-epoch-frequency"]
    if 0 < steps < NEVER:
        if "save-epoch-frequency" in values.given:
            migration.attention["save-epoch-frequency"] = (
                "left out: there is one interval, and --save-step-frequency is taken."
            )
        return _interval("save-step-frequency", steps, "step")
    return _interval("save-epoch-frequency", max(1, epochs), "epoch")


def _interval(option: str, count: int, unit: str) -> str:
    if count < 1:
        raise UserError(f"--{option} is {count} {unit}s; it must be at least 1.")
    return f"{count} {unit}{'s' if count > 1 else ''}"
