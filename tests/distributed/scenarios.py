"""What is run under every engine: small configurations, each the change of one thing.

A run is named ENGINE/SCENARIO@K, with K micro-batches on each rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel_train.config.schema import RunConfig
from accel_train.config.tasks import config_class
from tests.distributed import toy


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` put in, section by section; another model type replaces the whole section."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and "type" not in value
        merged[key] = _merged(base[key], value) if nested else value
    return merged


GLOBAL_BATCH = 16
TEACHER = "teacher"
"""Folder of a model beside the dataset's splits."""
STEPS = 5
FEW_STEPS = 2
LR_SCALES = [0.5, 1.0, 1.0, 0.7, 0.4]
"""Of every step: two steps of warmup, then from 1 towards 0.1 over three."""
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
WITH_DROPOUT: dict[str, Any] = {
    "model": {"config": {"text_config": DROPOUT, "vision_config": {"attention_dropout": 0.2}}},
}
WITHOUT_PATCHES = {"model": WITH_DROPOUT["model"] | {"mask_ratio": 0.5}}
SHORT: dict[str, Any] = {"max_steps": FEW_STEPS}
ONE_EPOCH: dict[str, Any] = {"max_steps": 3}
"""For what is about the forward pass or the loss alone: batches across epochs and a falling rate are seen in the others."""
KEYED = {"dropout": "per_sample"}
RECOMPUTED = {"compute": {"activation_checkpointing": True}}
CONVNEXT = {"num_stages": 2, "depths": [1, 2], "hidden_sizes": [8, 16], "layer_scale_init_value": 0.5}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 110}
IMAGE = {"name": "image", "layers": "chinese_clip_image", "lr": 0.2, "layer_decay": 0.7}
FROZEN_IMAGE = IMAGE | {"lr": 0.0, "layer_decay": 1.0}
TEXT = {"name": "text", "layers": "chinese_clip_text", "lr": 0.3, "layer_decay": 0.8}
FROZEN_TEXT = TEXT | {"lr": 0.0, "layer_decay": 1.0, "layers": ["chinese_clip_text", r"^text_projection\."]}
REST = [
    {"name": "heads", "layers": [r"_projection\."], "lr": 0.5},
    {"name": "temperature", "layers": ["^logit_"], "lr": 0.05},
]
ANY_TASK: dict[str, Any] = {
    "max_steps": STEPS,
    "data": {"valid_split": None, "global_batch_size": GLOBAL_BATCH, "num_workers": 0},
    "optimizer": {"name": "sgd", "weight_decay": 0.05},
    "schedule": {"name": "linear", "warmup_steps": 2, "min_lr_ratio": 0.1},
    "log": {"log_every": "1 step"},
}
CONTRASTIVE: dict[str, Any] = {
    "model": {
        "type": "chinese_clip",
        "size": "tiny",
        "config": {"text_config": {"vocab_size": 110, **NO_DROPOUT}, "vision_config": {"attention_dropout": 0.0}},
    },
    "data": {"tokenizer": "dataset:tokenizer", "max_text_length": 8, "image_size": 16},
    "optimizer": {"towers": [IMAGE, TEXT, *REST]},
}
TEXTS_FOLDER = "texts"
"""Where, in the dataset's folder, the one for the task `sequence_classification` lies."""
NUM_TEXTS = 70
TEXTS: dict[str, Any] = {
    "task": "sequence_classification",
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
    "data": {"tokenizer": "dataset:tokenizer", "max_text_length": 12, "length_window": 2, "last_batch": "keep"},
    "loss": {"label_smoothing": 0.1},
    "optimizer": {"towers": [{"name": "decoder", "layers": "llama", "lr": 0.1, "layer_decay": 0.7}]},
}
CLIP = {"type": "clip", "size": "tiny", "config": {"text_config": {"vocab_size": 110, "eos_token_id": 3}}}
SIGLIP = {"type": "siglip", "size": "tiny", "temperature": 0.2, "config": {"text_config": {"vocab_size": 110}}}
DUAL_ENCODER = {
    "type": "dual_encoder",
    "image": {"architecture": "convnext", "config": CONVNEXT},
    "text": {"architecture": "bert", "config": BERT | NO_DROPOUT},
    "projection_dim": 16,
}
DUAL_TOWERS = [
    {"name": "image", "layers": "convnext", "lr": 0.2, "layer_decay": 0.75, "max_grad_norm": 0.2},
    {"name": "text", "layers": "bert", "lr": 0.3, "layer_decay": 0.9, "train_last": 2, "weight_decay": 0.2},
    {"name": "pooling", "layers": [r"^text_pooling\."], "lr": 0.3},
    *REST,
]
TOKENS = {
    "task": toy.NAME,
    "optimizer": {"towers": [{"name": "all", "layers": [r"^layers\.", r"^head\."], "lr": 0.1, "layer_decay": 0.5}]},
}
SPOKEN = "spoken"
"""Where, in the dataset's folder, the one for images with speech lies."""
SENSES: dict[str, Any] = {
    "image": {"architecture": "convnext", "config": CONVNEXT},
    "audio": {"type": "log_mel_conv", "num_mels": 12, "width": 16, "num_layers": 2},
    "aligner": {"dim": 12, "hidden": 16},
}
SPOKEN_DATA = {
    "tokenizer": "dataset:tokenizer",
    "max_text_length": 10,
    "image_size": 16,
    "sample_rate": 8000,
    "max_audio_seconds": 0.3,
}
ALIGNED: dict[str, Any] = {
    "task": "multimodal_alignment",
    "model": SENSES | {"text": {"architecture": "bert", "config": BERT | NO_DROPOUT}, "temperature": 0.2},
    "data": SPOKEN_DATA,
    "optimizer": {
        "towers": [
            {"name": "image", "layers": "convnext", "lr": 0.2, "layer_decay": 0.7},
            {"name": "audio", "layers": [r"^audio_encoder\."], "lr": 0.1},
            {"name": "text", "layers": "bert", "lr": 0.2, "layer_decay": 0.8},
            {"name": "aligner", "layers": [r"^aligner\."], "lr": 0.3},
            REST[1],
        ]
    },
}
CAPTIONED: dict[str, Any] = {
    "task": "multimodal_llm",
    "model": SENSES
    | {
        "projector": {"reads": "tokens", "num_tokens": 3, "hidden": 16},
        "llm": {"architecture": "llama", "config": TEXTS["model"]["config"]},
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    },
    "data": SPOKEN_DATA | {"valid_split": "valid"},
    "optimizer": {
        "towers": [
            {"name": "senses", "layers": ["_encoder", "^aligner"], "lr": 0.0},
            {"name": "projector", "layers": ["^projector"], "lr": 1.0},
            {"name": "lora", "layers": ["lora_"], "lr": 0.5, "max_grad_norm": 0.5},
            {"name": "llm", "layers": "llama", "lr": 0.0},
        ]
    },
    "evaluation": {"evaluate_every": "2 steps", "batch_size": 3},
}
RATED = "rated"
"""Where, in the dataset's folder, the one for the task `scorer` lies."""
SCORER_TOWERS = [
    IMAGE,
    TEXT,
    {"name": "temperature", "layers": [r"logit_scale$"], "lr": 0.05},
    {"name": "heads", "layers": ["."], "lr": 0.1},
]
SCORER: dict[str, Any] = {
    "task": "scorer",
    "model": {
        "clip": CONTRASTIVE["model"] | {"temperature": 0.2},
        "dropout": 0.0,
        "hidden_quality": 16,
        "hidden_consistency": 16,
    },
    "data": CONTRASTIVE["data"],
}
SCORED = {
    "model": {"quality_layers": 2},
    "optimizer": {"towers": SCORER_TOWERS},
}
SCORED_APART = {
    "model": {"residual": None, "refinement": {"num_layers": 2, "num_heads": 2, "width": 16}},
    "loss": {"explanation_weight": 0.0, "name": "smooth_l1", "label_smoothing": 0.1},
    "optimizer": {"towers": SCORER_TOWERS},
}

WARM = {"model": {"temperature": 0.2}}
DISTILLED: dict[str, Any] = {
    "distillation": {
        "teacher": TEACHER,
        "guides": ["image_features", "text_features", "similarity"],
        "weight": 2.0,
    },
}
GENTLE = {"optimizer": {"towers": [tower | {"lr": tower["lr"] / 10} for tower in (IMAGE, TEXT, *REST)]}}
"""For gradients that are larger (sigmoid), and for weights that must not round to another 16-bit number (bf16)."""

SCENARIOS: dict[str, dict[str, Any]] = {
    # Split invariance. The small chunks are smaller than a rank's share of the batch, and divide nothing.
    "info_nce": {},
    "info_nce_chunked": ONE_EPOCH | {"loss": {"chunk_size": 3, "label_smoothing": 0.1}},
    # The last batch has 5 pairs, so that blocks which go around the ranks differ in size.
    "sigmoid": GENTLE | WARM | {"loss": {"name": "sigmoid"}, "data": {"last_batch": "keep"}},
    "sigmoid_chunked": ONE_EPOCH
    | GENTLE
    | WARM
    | {"loss": {"name": "sigmoid", "chunk_size": 5, "positives": "own", "label_smoothing": 0.1}},
    "llrd": {
        "model": DUAL_ENCODER,
        "optimizer": {"towers": DUAL_TOWERS, "momentum": 0.9, "max_grad_norm": 0.5},
        "loss": {"chunk_size": 7},
    },
    "clip": ONE_EPOCH
    | {
        "model": CLIP,
        "optimizer": {"towers": [IMAGE | {"layers": "clip_image"}, TEXT | {"layers": "clip_text"}, *REST]},
    },
    "siglip": ONE_EPOCH
    | {
        "model": SIGLIP,
        "optimizer": {
            "towers": [IMAGE | {"layers": "siglip_image"}, TEXT | {"layers": "siglip_text"}, REST[1]],
            "max_grad_norm": 1.0,
        },
        "loss": {"name": "sigmoid"},
    },
    # An evaluation after every step runs one tower alone.
    "evaluated": {
        "data": {"valid_split": "valid"},
        "optimizer": {"momentum": 0.9},
        "evaluation": {"evaluate_every": "1 step", "batch_size": 3},
    },
    "last_batch": {"data": {"last_batch": "keep"}},
    "unreadable": {"data": {"train_split": "damaged", "max_unreadable_samples": 100}},
    "tokens": TOKENS,
    # Batches of texts of like length, padded otherwise under every split; the last one is smaller.
    "texts": TEXTS,
    "texts_keyed_dropout": _merged(TEXTS, KEYED | {"model": {"config": {"attention_dropout": 0.2}}}),
    # Quality and consistency: compared over the whole batch with explanations, adding up without them.
    "scored": _merged(SCORER, ONE_EPOCH | SCORED),
    "scored_apart": _merged(SCORER, ONE_EPOCH | SCORED_APART),
    # Nothing of the image side trains, its projection included.
    "frozen_image": {
        "optimizer": {
            "towers": [FROZEN_IMAGE | {"layers": ["chinese_clip_image", r"^visual_projection\."]}, TEXT, *REST]
        }
    },
    # The texts, which go around the ranks, don't train.
    "sigmoid_frozen_text": ONE_EPOCH
    | WARM
    | {
        "loss": {"name": "sigmoid"},
        "optimizer": {"towers": [GENTLE["optimizer"]["towers"][0], FROZEN_TEXT, *GENTLE["optimizer"]["towers"][2:]]},
    },
    # Three modalities compared in pairs; adapters and a projector in front of a frozen decoder, which writes captions too.
    "aligned": ONE_EPOCH | ALIGNED,
    "captioned": ONE_EPOCH | CAPTIONED,
    # A teacher with features of another width, for images of another size; its losses want all features on every rank.
    "distilled": SHORT | WARM | DISTILLED,
    "distilled_sigmoid": SHORT | WARM | DISTILLED | {"loss": {"name": "sigmoid"}},
    # Dropout, of half of the patches too
    "fast_dropout": SHORT | WITHOUT_PATCHES,
    "fast_dropout_recomputed": SHORT | WITHOUT_PATCHES | RECOMPUTED,
    "keyed_dropout": SHORT | WITHOUT_PATCHES | KEYED,
    "keyed_dropout_recomputed": SHORT | WITHOUT_PATCHES | KEYED | RECOMPUTED,
    # Precision
    "bf16": SHORT | GENTLE | {"precision": "bf16"},
    "fp16": SHORT | {"precision": "fp16"},
    "fp16_overflow": SHORT | {"precision": "fp16"},
    "fp16_search": SHORT | {"precision": "fp16"},
    # Groups
    "one_step": {"max_steps": 1},
    "one_step_text_clipped": {
        "max_steps": 1,
        "optimizer": {"towers": [IMAGE, TEXT | {"max_grad_norm": 1e-3}, *REST]},
    },
    "frozen_layers": SHORT | WITH_DROPOUT | {"optimizer": {"towers": [FROZEN_IMAGE, TEXT | {"train_last": 1}, *REST]}},
    "frozen_resnet": SHORT
    | {
        "model": DUAL_ENCODER | {"image": {"architecture": "resnet", "config": RESNET}},
        "optimizer": {"towers": [FROZEN_IMAGE | {"layers": "resnet"}, *DUAL_TOWERS[1:]]},
    },
    # Equal to one process with a single micro-batch alone.
    "synced": SHORT
    | {
        "model": DUAL_ENCODER | {"batch_norm": "sync", "image": {"architecture": "resnet", "config": RESNET}},
        "optimizer": {"towers": [IMAGE | {"layers": "resnet"}, *DUAL_TOWERS[1:]]},
    },
    "kept_graphs": SHORT | {"compute": {"kept_graphs": 2}},
    # Costs and faults
    "counted": SHORT,
    "poisoned": SHORT
    | TOKENS
    | {"data": {"train_split": toy.POISONED_SPLIT, "shuffle": False}, "nonfinite": {"max_in_a_row": 0}},
}
INVARIANT = list(SCENARIOS)[: list(SCENARIOS).index("fast_dropout")]
OTHERS = [name for name in SCENARIOS if name not in (*INVARIANT, "synced", "kept_graphs")]
KEPT_GRAPHS = ["kept_graphs@2", "kept_graphs@4"]
"""All graphs of a step kept, and half of them."""
KEEP_GRAPHS = ("ddp", "zero1", "zero2")
KEYED_DROPOUT = ["keyed_dropout", "keyed_dropout_recomputed"]
WITH_OFFLOAD = ["info_nce", "llrd", "evaluated", "tokens"]
IN_ONE_PIECE = ["info_nce", "siglip", "tokens", "frozen_image"]
"""With a single micro-batch, where engines have less to go wrong. DDP takes all of INVARIANT then too."""
ON_ONE_RANK = ["info_nce", "sigmoid_chunked", "llrd", "evaluated", "tokens", "frozen_image"]
"""For engines other than DDP, which are not made for one rank."""
ENGINES = ["ddp", "fsdp2", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload"]
WHOLE_ENGINES = [engine for engine in ENGINES if "offload" not in engine]
LAUNCHES = {name: [engine for engine in ENGINES if engine.startswith(name)] for name in WHOLE_ENGINES}
"""Engines that follow one another in one process. Others are kept apart: ZeRO-3 replaces torch's `linear` for good."""


def runs_of_launch(launch: str, world_size: int) -> list[str]:
    return [f"{engine}/{run}" for engine in LAUNCHES[launch] for run in runs_of(engine, world_size)]


def runs_of(engine: str, world_size: int) -> list[str]:
    """One process is there for the split alone; two ranks show everything else too."""
    if "offload" in engine:
        return [f"{name}@2" for name in WITH_OFFLOAD] if world_size == 2 else []
    whole = INVARIANT if engine == "ddp" else IN_ONE_PIECE
    if world_size == 2:
        cut = [f"{name}@2" for name in (*INVARIANT, *OTHERS)]
        cut += KEPT_GRAPHS if engine in KEEP_GRAPHS else []
        return [*(f"{name}@1" for name in whole), *cut, "keyed_dropout@1", "fast_dropout@1", "counted@1", "synced@1"]
    cut = [f"{name}@4" for name in (INVARIANT if engine == "ddp" else ON_ONE_RANK)]
    return [*(f"{name}@1" for name in whole), *cut, "keyed_dropout@4", "fast_dropout@4", "bf16@4"]


def config_of(scenario: str, *, dataset: str, run_dir: str, engine: str, micro_batch_size: int) -> RunConfig:
    """`engine` as in the configuration, with `_offload` behind it to keep the optimizer's state in CPU memory."""
    name, _, offload = engine.partition("_")
    place: dict[str, Any] = {
        "run_dir": run_dir,
        "engine": name,
        "zero": {"offload_optimizer": bool(offload)},
        "data": {"path": dataset, "micro_batch_size": micro_batch_size},
    }
    changes = SCENARIOS[scenario]
    if changes.get("task") == "sequence_classification":
        place["data"]["path"] = str(Path(dataset) / TEXTS_FOLDER)
    if changes.get("task") == "scorer":
        place["data"]["path"] = str(Path(dataset) / RATED)
    if changes.get("task", "").startswith("multimodal"):
        place["data"]["path"] = str(Path(dataset) / SPOKEN)
    if "distillation" in changes:
        place["distillation"] = {"teacher": str(Path(dataset) / TEACHER)}
    base = ANY_TASK if "task" in changes else _merged(ANY_TASK, CONTRASTIVE)
    values = _merged(_merged(base, changes), place)
    return config_class(values).model_validate(values)
