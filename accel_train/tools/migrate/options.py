"""The 46 options of the original Chinese-CLIP trainer (cn_clip/training/params.py), and what each is here."""

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from accel_train.errors import UserError

VISION_MODELS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50")
TEXT_MODELS = ("RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "RBT3-chinese")
NOT_NEEDED = "not needed"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of the original."""

    name: str
    default: Any
    """What the original takes where the option is not given. False for a switch."""
    key: str
    """Our key or keys, or NOT_NEEDED."""
    note: str
    type: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None


def _option(name: str, default: Any, key: str, note: str, **others: Any) -> Option:
    return Option(name, default, key, note, **others)


BY_MODEL = "by model"
"""Default of the options whose default depends on --vision-model."""

OPTIONS = (
    _option(
        "train-data",
        None,
        "data.path, data.train_split",
        "import the LMDB once; training reads the folder made from it",
    ),
    _option("val-data", None, "data.valid_split", "a split of the same folder; null without it"),
    _option("num-workers", 4, "data.num_workers", "any number works, on any start method", type=int),
    _option("valid-num-workers", 1, NOT_NEEDED, "data.num_workers is for both splits", type=int),
    _option("logs", "./logs/", "run_dir", "run_dir is LOGS/NAME"),
    _option("name", "train_clip", "run_dir", "run_dir is LOGS/NAME"),
    _option("log-interval", 10, "log.log_every", "in steps", type=int),
    _option("report-training-batch-acc", False, NOT_NEEDED, "always logged, as in_batch_accuracy/…; it is no recall"),
    _option(
        "batch-size",
        64,
        "data.micro_batch_size, data.global_batch_size",
        "global = batch × ranks × accumulation",
        type=int,
    ),
    _option("valid-batch-size", 64, "evaluation.batch_size", "scores don't depend on it here", type=int),
    _option("max-steps", None, "max_steps", "goes before --max-epochs", type=int),
    _option("max-epochs", 32, "num_epochs", "not used beside --max-steps", type=int),
    _option("valid-step-interval", None, "evaluation.evaluate_every", "goes before --valid-epoch-interval", type=int),
    _option(
        "valid-epoch-interval",
        1,
        "evaluation.evaluate_every",
        "recall over the whole split, not in-batch accuracy",
        type=int,
    ),
    _option("context-length", 52, "data.max_text_length", "special tokens included", type=int),
    _option("lr", BY_MODEL, "optimizer.towers", "5e-4; 4e-4 for ViT-L. Each tower may have its own", type=float),
    _option("beta1", BY_MODEL, "optimizer.betas", "0.9", type=float),
    _option("beta2", BY_MODEL, "optimizer.betas", "0.98; 0.999 for RN50", type=float),
    _option("eps", BY_MODEL, "optimizer.eps", "1e-6; 1e-8 for RN50", type=float),
    _option("wd", 0.2, "optimizer.weight_decay", "with no_decay: chinese_clip, the original's rule", type=float),
    _option("warmup", 500, "schedule.warmup_steps", "the same formula: step s of w learns at (s + 1) / w", type=int),
    _option("use-bn-sync", False, "model.batch_norm", "sync; RN50 alone has BatchNorm"),
    _option("use-augment", False, "data.augmentation", "crop, flip and AutoAugment; each can be switched off"),
    _option("skip-scheduler", False, "schedule.name", "constant; the original reads the option and never uses it"),
    _option(
        "save-epoch-frequency", 1, "checkpoint.save_every", "the last two and the best are kept, not all", type=int
    ),
    _option("save-step-frequency", -1, "checkpoint.save_every", "goes before --save-epoch-frequency", type=int),
    _option("resume", None, "model.pretrained, initialize_from", "weights; a run of ours goes on by itself"),
    _option("reset-optimizer", False, "initialize_optimizer", "its opposite: true takes the state over"),
    _option("reset-data-offset", False, NOT_NEEDED, "a new run begins at its first sample"),
    _option("precision", "amp", "precision", "amp is fp16; weights stay fp32", choices=("amp", "fp16", "fp32")),
    _option(
        "vision-model",
        "ViT-B-16",
        "model.size, data.image_size",
        "a checkpoint says its own size",
        choices=VISION_MODELS,
    ),
    _option("mask-ratio", 0.0, "model.mask_ratio", "in training alone", type=float),
    _option("clip-weight-path", None, "model.vision_pretrained", "the image tower alone"),
    _option("freeze-vision", False, "optimizer.towers", "lr 0 for tower and projection; both stay in eval mode"),
    _option(
        "text-model", TEXT_MODELS[0], "model.size, model.config", "a checkpoint says its own size", choices=TEXT_MODELS
    ),
    _option("bert-weight-path", None, "model.text_pretrained", "the text tower alone"),
    _option("grad-checkpointing", False, "compute.activation_checkpointing", "both towers"),
    _option("use-flash-attention", False, "model.attention", "flash_attention_2; weights load with or without it"),
    _option("accum-freq", 1, "data.global_batch_size", "exact here, temperature and dropout included", type=int),
    _option("gather-with-grad", False, NOT_NEEDED, "always: the gradient is that of the whole batch"),
    _option("skip-aggregate", False, NOT_NEEDED, "the loss is always over the whole global batch"),
    _option("debug", False, NOT_NEEDED, "run.log holds what there is to say"),
    _option("seed", 123, "seed", "the draws are others than the original's", type=int),
    _option("distillation", False, "distillation", "image features, as in the original"),
    _option(
        "teacher-model-name", None, "distillation.teacher", "a folder or checkpoint file instead of a ModelScope name"
    ),
    _option("kd_loss_weight", 0.5, "distillation.weight", "the same factor", type=float),
)

_BY_MODEL = {
    "RN50": {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "ViT-L-14": {"lr": 4e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6},
    "ViT-L-14-336": {"lr": 4e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6},
}
_BY_OTHER_MODELS = {"lr": 5e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}


@dataclass(frozen=True, slots=True)
class Values:
    """What the original would run with."""

    of: dict[str, Any]
    """Every option by its name, defaults included."""
    given: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.of[name]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"the trainer's options: {message}.")


def read_options(words: list[str]) -> Values:
    """Options as the original's parser reads them: `--lr 1e-5`, `--lr=1e-5`, unique beginnings, the last one counts."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for option in OPTIONS:
        if option.default is False:
            parser.add_argument(f"--{option.name}", dest=option.name, action="store_true")
        else:
            parser.add_argument(f"--{option.name}", dest=option.name, type=option.type, choices=option.choices)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError("\n".join(_unknown(word) for word in unknown))
    given = vars(found)
    if "train-data" not in given:
        raise UserError("the trainer's options: --train-data is missing, and the original refuses to start without it.")
    values = {option.name: option.default for option in OPTIONS} | given
    by_model = _BY_MODEL.get(values["vision-model"], _BY_OTHER_MODELS)
    values |= {name: value for name, value in by_model.items() if name not in given}
    return Values(values, frozenset(given))


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"{word!r} stands among the trainer's options and belongs to none of them; quote values with blanks."
    name = word.split("=")[0]
    near = difflib.get_close_matches(
        name.replace("_", "-"), [f"--{option.name}" for option in OPTIONS], n=1, cutoff=0.5
    )
    hint = f" Nearest: {near[0]}." if near else ""
    return (
        f"{name} is not one of the {len(OPTIONS)} options of the original trainer.{hint} Correct it, or take out what your "
        "own version of the trainer added and set its counterpart in the configuration."
    )
