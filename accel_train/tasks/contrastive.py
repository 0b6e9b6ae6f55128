"""Contrastive training of an image tower and a text tower (CLIP, Chinese-CLIP, SigLIP, dual encoders)."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel_train.config.contrastive import ContrastiveConfig
from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.duplicates import chance_of_a_duplicate
from accel_train.data.order import Buckets
from accel_train.data.pairs import ImageDataset, PairDataset, TextDataset, caption_tokenizer, tokenizer_path
from accel_train.data.splits import open_split
from accel_train.data.tokenizer_files import export_tokenizer
from accel_train.errors import UserError
from accel_train.losses.chunked import CHUNK_SIZE
from accel_train.losses.contrastive import info_nce, info_nce_in_words, sigmoid_loss, sigmoid_loss_of_block
from accel_train.metrics.retrieval import in_batch_accuracy, recall_both_ways
from accel_train.models.build import adapt_to_training, build_contrastive_model
from accel_train.models.cn_clip_files import cn_clip_optimizer_state
from accel_train.models.contrastive_model import ContrastiveModel
from accel_train.models.export import load_pretrained_weights, save_pretrained
from accel_train.models.pretrained import building_on_meta
from accel_train.optim.frozen import never_trained
from accel_train.tasks.clip_parts import check_tokenizer, reads_padding, section_of_export
from accel_train.tasks.distillation import (
    distillation_hazards,
    distillation_losses,
    project_to_teacher,
    refuse_frozen_students,
    teacher_bytes,
    teacher_columns,
)
from accel_train.tasks.retrieval_rows import retrieval_rows, without_match
from accel_train.tasks.task import Batch, Task
from accel_train.tasks.teacher import Teacher, open_teacher, teacher_width

RECALL_AT = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


class ContrastiveTask(Task):
    """Image-text pairs, compared over the whole global batch; retrieval both ways as the score."""

    config: ContrastiveConfig
    config_class: ClassVar[type[RunConfig]] = ContrastiveConfig
    compares_whole_batch = True
    splits_loss: ClassVar[bool] = True
    shared_outputs: ClassVar[frozenset[str]] = frozenset({"logit_scale", "logit_bias"})
    score_names: tuple[str, ...] = (
        "mean_recall",
        *(f"{direction}_recall@{k}" for direction in DIRECTIONS for k in RECALL_AT),
        *(f"{direction}_mean_recall" for direction in DIRECTIONS),
    )
    output_inputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "image_features": ("pixel_values",),
        "text_features": ("input_ids", "attention_mask"),
        "projected_image_features": ("pixel_values",),
        "projected_text_features": ("input_ids", "attention_mask"),
    }

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.teacher: Teacher | None = None
        self.loss_columns = ("image_key", "text_key")
        if self.config.distillation is not None:
            self.loss_columns += teacher_columns(self.config.distillation)
        elif self.config.loss.name == "sigmoid":
            self.ring_outputs = ("text_features",)

    def build_model(self) -> nn.Module:
        model = build_contrastive_model(self.config)
        if self.config.distillation is not None:
            project_to_teacher(model, self.config)
        frozen = never_trained(model, self.config)
        adapt_to_training(model, self.config.model, frozen)
        if self.config.distillation is not None:
            refuse_frozen_students(model, self.config.distillation, frozen)
        if not building_on_meta():
            check_tokenizer(caption_tokenizer(self.config.data), model, self.config.model)
        return model

    def weight_limits(self) -> dict[str, float]:
        """logit_scale stays at its clamp, as in the original CLIP; else it would have to come back from beyond it."""
        largest = self.config.model.max_logit_scale
        return {} if largest is None else {"logit_scale": math.log(largest)}

    def build_dataset(self, split: str) -> Dataset:
        return PairDataset(self.config.data, split, seed=self.config.seed, whole_length=reads_padding(self.config))

    def buckets(self, dataset: Dataset) -> Buckets | None:
        if not self.config.data.sort_by_length:
            return None
        if reads_padding(self.config):
            raise UserError(
                "data.sort_by_length: true would be ignored: a SigLIP, as model or as a teacher of captions, pads every "
                f"caption to data.max_text_length ({self.config.data.max_text_length}). Set it to false."
            )
        assert isinstance(dataset, PairDataset)
        return Buckets(dataset.caption_bytes(), window=1)

    def num_samples(self, split: str) -> int:
        return open_split(self.config.data.path, split).num_pairs

    def check_splits(self, model: nn.Module | None, splits: list[str]) -> list[str]:
        return [line for split in self.scored_of(splits) for line in without_match(self.config.data.path, split)]

    def evaluation_sets(self, split: str) -> list[Dataset]:
        texts = TextDataset(self.config.data, split, whole_length=reads_padding(self.config))
        return [ImageDataset(self.config.data, split), texts]

    def example_batch(self, num_rows: int) -> Batch:
        size, length = self.config.data.image_size, self.config.data.max_text_length
        batch = {
            "pixel_values": torch.zeros(num_rows, 3, size, size, dtype=torch.uint8),
            "input_ids": torch.zeros(num_rows, length, dtype=torch.int64),
            "attention_mask": torch.ones(num_rows, length, dtype=torch.int64),
        }
        if self.config.distillation is None:
            return batch
        width = teacher_width(self.config)
        for column in teacher_columns(self.config.distillation):
            shape = (num_rows,) if column == "teacher_logit_scale" else (num_rows, width)
            batch[column] = torch.zeros(shape)
        return batch

    def hazards(self) -> list[str]:
        found = []
        if self.config.model.batch_norm in ("local", "sync"):
            found.append(
                f"model.batch_norm is {self.config.model.batch_norm}: results depend on data.micro_batch_size."
            )
        if self.config.distillation is not None:
            found += distillation_hazards(self.config)
        return found

    def frozen_bytes(self) -> int:
        return teacher_bytes(self.config)

    def chance_of_a_false_negative(self) -> float:
        if self.config.loss.positives == "shared":
            return 0.0
        split = open_split(self.config.data.path, self.config.data.train_split)
        images, texts = split.matches().numpy().T
        return chance_of_a_duplicate(split.images.column("image_key")[images], split.texts.column("text_key")[texts])

    def prepare_training(self, device: torch.device) -> list[str]:
        section, notes = self.config.loss, list[str]()
        if device.type == "cuda" and section.name == "info_nce":
            notes.append(info_nce_in_words(device, self.config.data.global_batch_size, section.chunk_size))
        if self.config.distillation is not None:
            self.teacher = open_teacher(self.config, device)
            notes += self.teacher.notes
        return notes

    def add_to_batch(self, batch: Batch) -> Batch:
        # Batches of an evaluation hold one tower's inputs and no keys.
        if self.teacher is None or "image_key" not in batch:
            return batch
        return batch | self.teacher.features(batch)

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        losses = self._contrastive_loss(outputs, batch)
        if self.config.distillation is not None:
            chunk_size = self.config.loss.chunk_size or CHUNK_SIZE
            losses |= distillation_losses(self.config.distillation, outputs, batch, chunk_size)
        return losses

    def _contrastive_loss(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        section = self.config.loss
        options: dict[str, Any] = {
            "image_key": batch["image_key"],
            "text_key": batch["text_key"],
            "positives": section.positives,
            "label_smoothing": section.label_smoothing,
        }
        features = [outputs["image_features"], outputs["text_features"], outputs["logit_scale"]]
        start, stop = batch["anchors"].tolist() if "anchors" in batch else (0, len(features[0]))
        if section.name == "info_nce":
            return {"info_nce": info_nce(*features, chunk_size=section.chunk_size, anchors=(start, stop), **options)}
        features.append(outputs["logit_bias"])
        options["chunk_size"] = section.chunk_size or CHUNK_SIZE
        if "block" not in batch:
            return {"sigmoid": sigmoid_loss(*features, anchors=(start, stop), **options)}
        first, last = batch["block"].tolist()
        options |= {"image_rows": (start, stop), "text_rows": (first, last), "num_rows": int(batch["num_rows"])}
        return {"sigmoid": sigmoid_loss_of_block(*features, **options)}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        kinds = [kind for kind in ("image", "text") if f"{kind}_features" in outputs]
        return {f"{kind}_features": outputs[f"{kind}_features"] for kind in kinds} | {
            f"{kind}_row": batch["sample_id"] for kind in kinds
        }

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """Recall both ways, 0 to 1, over the images that have a text and the texts, among all of the split."""
        matches = open_split(self.config.data.path, split).matches()
        images = _in_order(predictions["image_features"], predictions["image_row"])
        texts = _in_order(predictions["text_features"], predictions["text_row"])
        scores: dict[str, float] = {}
        try:
            to_text, to_image = recall_both_ways(images, texts, matches, ks=RECALL_AT)
        except ValueError as error:
            raise UserError(f"{self.config.data.path}, split {split}: recall can't be taken, {error}.") from error
        for direction, values in (("text_to_image", to_image), ("image_to_text", to_text)):
            scores |= {f"{direction}_recall@{k}": value for k, value in values.items()}
            scores[f"{direction}_mean_recall"] = sum(values.values()) / len(values)
        scores["mean_recall"] = (scores["text_to_image_mean_recall"] + scores["image_to_text_mean_recall"]) / 2
        return scores

    def prediction_rows(self, predictions: dict[str, Tensor], split: str) -> Iterator[dict[str, Any]]:
        """Every text with the rank of its image and the images that are nearest to it."""
        images = _in_order(predictions["image_features"], predictions["image_row"])
        texts = _in_order(predictions["text_features"], predictions["text_row"])
        return retrieval_rows(images, texts, self.config.data.path, split)

    def train_metrics(self, outputs: Batch) -> dict[str, Any]:
        """The temperature, and how often a pair is told from the rest of its batch, which is no recall."""
        images, texts = outputs["image_features"], outputs["text_features"]
        chunk_size = self.config.loss.chunk_size or CHUNK_SIZE
        return {
            "temperature": 1 / outputs["logit_scale"].item(),
            "in_batch_accuracy/image_to_text": in_batch_accuracy(images, texts, chunk_size=chunk_size),
            "in_batch_accuracy/text_to_image": in_batch_accuracy(texts, images, chunk_size=chunk_size),
        }

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        assert isinstance(model, ContrastiveModel)
        return model.notes

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        assert isinstance(model, ContrastiveModel)
        load_pretrained_weights(model, folder, self.config)

    def load_optimizer_state(self, model: nn.Module, source: str) -> dict[str, dict[str, Tensor]]:
        return cn_clip_optimizer_state(source, model, "initialize_optimizer")

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        assert isinstance(config, ContrastiveConfig)
        # The export holds the tokenizer too: the dataset that it came from need not be there any more.
        data = config.data.model_copy(update={"tokenizer": folder})
        model = section_of_export(config.model, folder)
        return config.model_copy(update={"model": model, "data": data, "distillation": None})

    def export(self, model: nn.Module, folder: str) -> None:
        """A Hugging Face folder with the model, its image processor and its tokenizer."""
        assert isinstance(model, ContrastiveModel)
        save_pretrained(model, folder, self.config)
        export_tokenizer(tokenizer_path(self.config.data), folder)


def _in_order(features: Tensor, rows: Tensor) -> Tensor:
    """Features sorted by dataset row, each row exactly once."""
    order = rows.argsort()
    if not torch.equal(rows[order], torch.arange(len(rows), device=rows.device)):
        raise RuntimeError("evaluation gave some rows twice or not at all")
    return features[order]
