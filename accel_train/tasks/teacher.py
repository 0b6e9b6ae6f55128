"""Teachers of a contrastive run: a live model, or the features that one has stored. Both answer a micro-batch."""

from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.config.contrastive import ContrastiveConfig, DistillationSection
from accel_train.data.feature_file import FeatureFile, read_features
from accel_train.data.pairs import caption_tokenizer
from accel_train.data.splits import open_split
from accel_train.data.text import open_tokenizer
from accel_train.errors import UserError
from accel_train.models.teacher import build_teacher, teacher_config
from accel_train.tasks.task import Batch

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(Protocol):
    notes: list[str]
    """What the log should say of it."""

    def features(self, batch: Batch) -> Batch:
        """teacher_image_features and teacher_text_features (n, D) of what the guides need, teacher_logit_scale (n,)."""
        ...


def kinds_of(section: DistillationSection) -> tuple[str, ...]:
    """Which features the guides read of the teacher."""
    both = "similarity" in section.guides
    return tuple(kind for kind in ("image", "text") if both or f"{kind}_features" in section.guides)


def open_teacher(config: ContrastiveConfig, device: torch.device) -> Teacher:
    """The teacher that `distillation` names. Raises UserError."""
    assert config.distillation is not None
    return LiveTeacher(config, device) if config.distillation.teacher is not None else StoredTeacher(config, device)


def teacher_width(config: ContrastiveConfig) -> int:
    """Length of the teacher's features."""
    section = config.distillation
    assert section is not None
    if section.features is not None:
        content = read_features(section.features)
        found = content.image_features if content.image_features is not None else content.text_features
        assert found is not None  # read_features refuses a file without any
        return found.shape[1]
    with torch.device("meta"):
        return build_teacher(teacher_config(config, reads_texts=False)).feature_width


class LiveTeacher:
    """A frozen model that sees each micro-batch as the student does: the same crops, flips and masked tokens."""

    def __init__(self, config: ContrastiveConfig, device: torch.device) -> None:
        assert config.distillation is not None
        self.kinds = kinds_of(config.distillation)
        source = config.distillation.teacher
        own = teacher_config(config, reads_texts="text" in self.kinds)
        try:
            self.model = build_teacher(own).to(device)
        except UserError as error:
            raise UserError(f"distillation.teacher: {source} can't be used. {error}") from error
        if "text" in self.kinds:
            _check_vocabulary(config, self.model.get_submodule("text_model"))
        self.device, self.image_size = device, own.data.image_size
        self.dtype = AUTOCAST[config.precision]
        self.notes = [f"teacher from {source}: guides {', '.join(config.distillation.guides)}", *self.model.notes]
        if "image" in self.kinds and self.image_size != config.data.image_size:
            sizes = f"{config.data.image_size} px are resized to its {self.image_size} px"
            self.notes.append(f"the teacher's images: the student's of {sizes}")

    @torch.no_grad()
    def features(self, batch: Batch) -> Batch:
        names = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}
        wanted = [name for kind in self.kinds for name in names[kind]]
        inputs = {name: batch[name].to(self.device, non_blocking=True) for name in wanted}
        if "image" in self.kinds:
            inputs["pixel_values"] = resized(inputs["pixel_values"], self.image_size)
        in_precision = torch.autocast(self.device.type, dtype=self.dtype) if self.dtype is not None else nullcontext()
        with in_precision:
            outputs = self.model(inputs)
        found = {f"teacher_{kind}_features": outputs[f"{kind}_features"] for kind in self.kinds}
        return found | {"teacher_logit_scale": outputs["logit_scale"].float().expand(len(batch["sample_id"]))}


def resized(pixel_values: Tensor, size: int) -> Tensor:
    """(n, 3, S, S) uint8 pixels at another size by Pillow's bicubic filter, which rounds after each direction; uint8."""
    now = pixel_values.shape[-1]
    if now == size:
        return pixel_values
    found = pixel_values.float()
    for shape in ((now, size), (size, size)):
        found = F.interpolate(found, shape, mode="bicubic", antialias=True).round_().clamp_(0, 255)
    return found.to(torch.uint8)


class StoredTeacher:
    """Features that `accel-train embed` stored: of the images without augmentation and of the whole captions."""

    def __init__(self, config: ContrastiveConfig, device: torch.device) -> None:
        section = config.distillation
        assert section is not None and section.features is not None
        self.device = device
        content = read_features(section.features)
        self.logit_scale = content.logit_scale
        if "similarity" in section.guides and self.logit_scale is None:
            raise UserError(
                f"distillation.guides: similarity needs the teacher's temperature, and {section.features} does not hold it. "
                "Write the file again with `accel-train embed`, or take similarity out."
            )
        split = open_split(config.data.path, config.data.train_split)
        if content.fingerprint != split.fingerprint:
            raise UserError(
                f"distillation.features: {section.features} holds features of {content.dataset or 'other data'}, not of "
                f"{config.data.path}, split {split.name}, as it is now. Write them again with `accel-train embed`."
            )
        image_rows, text_rows = split.matches().unbind(1)
        self.columns = {
            kind: (_features(content, kind, section.features), rows)
            for kind, rows in (("image", image_rows), ("text", text_rows))
            if kind in kinds_of(section)
        }
        self.notes = [f"teacher's features from {section.features} ({content.source}), without augmentation"]

    def features(self, batch: Batch) -> Batch:
        pairs = batch["sample_id"].cpu()
        found = {
            f"teacher_{kind}_features": features[rows[pairs]].to(self.device)
            for kind, (features, rows) in self.columns.items()
        }
        if self.logit_scale is not None:
            found["teacher_logit_scale"] = torch.full((len(pairs),), self.logit_scale, device=self.device)
        return found


def _features(content: FeatureFile, kind: str, path: str) -> Tensor:
    found = content.features(kind)
    if found is None:
        raise UserError(
            f"distillation.features: {path} holds no {kind}_features, which distillation.guides asks for. Embed them too, "
            "or take the guide out."
        )
    return found


def _check_vocabulary(config: ContrastiveConfig, text_model: torch.nn.Module) -> None:
    """The teacher reads the student's token ids, so they must mean the same to it."""
    assert config.distillation is not None and config.distillation.teacher is not None
    source, ours = config.distillation.teacher, caption_tokenizer(config.data)
    remedy = "Take the guide image_features alone, or a teacher with the vocabulary of data.tokenizer."
    embedded = int(vars(text_model)["config"].vocab_size)
    files = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
    if any((Path(source) / name).is_file() for name in files):
        theirs = open_tokenizer(source, config.data.max_text_length).vocabulary()
        if theirs != ours.vocabulary():
            raise UserError(
                f"distillation.teacher: {source} has another tokenizer than the run: {len(theirs)} tokens, and "
                f"data.tokenizer has {len(ours.vocabulary())}, or the same ones with other ids. {remedy}"
            )
    elif embedded != ours.vocab_size:
        raise UserError(
            f"distillation.teacher: {source} embeds {embedded} tokens, and data.tokenizer has {ours.vocab_size}. {remedy}"
        )
