"""Phase 1 of a multimodal language model: images, speech and captions are brought into one space."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel_train.config.multimodal_alignment import MultimodalAlignmentConfig
from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.speech import MODALITIES, OneModality, SpokenImageDataset, speech_tokenizer
from accel_train.data.spoken_split import open_spoken_split
from accel_train.data.tokenizer_files import export_tokenizer, find_tokenizer
from accel_train.errors import UserError
from accel_train.losses.chunked import CHUNK_SIZE
from accel_train.losses.contrastive import info_nce, info_nce_in_words
from accel_train.metrics.retrieval import in_batch_accuracy, recall_at
from accel_train.models.multimodal import MultimodalAligner
from accel_train.models.multimodal_files import load_senses, save_senses
from accel_train.models.pretrained import building_on_meta
from accel_train.tasks.encoder_features import check_stored, example_vectors, refuse_trained_encoders
from accel_train.tasks.task import Batch, Task

PAIRS = (("image", "text"), ("image", "audio"), ("audio", "text"))
RECALL_AT = (1, 5)
DIRECTIONS = tuple(direction for pair in PAIRS for direction in (pair, pair[::-1]))


class MultimodalAlignmentTask(Task):
    """Three modalities compared in pairs over the whole global batch; retrieval in all six directions as the score."""

    config: MultimodalAlignmentConfig
    config_class: ClassVar[type[RunConfig]] = MultimodalAlignmentConfig
    compares_whole_batch = True
    splits_loss: ClassVar[bool] = True
    shared_outputs: ClassVar[frozenset[str]] = frozenset({"logit_scale"})
    loss_columns = tuple(f"{kind}_key" for kind in MODALITIES)
    score_names: tuple[str, ...] = (
        "mean_recall",
        *(f"{query}_to_{target}_recall@{k}" for query, target in DIRECTIONS for k in RECALL_AT),
        *(f"{query}_to_{target}_mean_recall" for query, target in DIRECTIONS),
    )
    output_inputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "image_features": ("pixel_values", "image_vector"),
        "audio_features": ("waveform", "num_audio_samples", "audio_vector"),
        "text_features": ("input_ids", "attention_mask", "text_vector"),
    }

    def build_model(self) -> nn.Module:
        model = MultimodalAligner(self.config).train()
        if not building_on_meta():
            num_tokens, embedded = speech_tokenizer(self.config.data).vocab_size, model.text_encoder.config.vocab_size
            if num_tokens > embedded:
                raise UserError(
                    f"data.tokenizer has {num_tokens} tokens, but model.text embeds {embedded}. Take the model's own "
                    "tokenizer, or for random weights set model.text.config.vocab_size."
                )
        if self.config.data.features is not None:
            refuse_trained_encoders(model, self.config, MODALITIES)
        return model

    def check_splits(self, model: nn.Module | None, splits: list[str]) -> list[str]:
        if self.config.data.features is None:
            return []
        check_stored(model, self.config, MODALITIES, splits)
        return [f"the encoders don't run; what they give is read from {self.config.data.features}"]

    def prepare_training(self, device: torch.device) -> list[str]:
        if device.type != "cuda":
            return []
        return [info_nce_in_words(device, self.config.data.global_batch_size, self.config.loss.chunk_size)]

    def build_dataset(self, split: str) -> Dataset:
        return SpokenImageDataset(self.config.data, split, seed=self.config.seed)

    def num_samples(self, split: str) -> int:
        return open_spoken_split(self.config.data.path, split).num_samples

    def evaluation_sets(self, split: str) -> list[Dataset]:
        return [OneModality(self.config.data, split, kind) for kind in MODALITIES]

    def example_batch(self, num_rows: int) -> Batch:
        data = self.config.data
        if data.features is not None:
            return example_vectors(data, MODALITIES, num_rows)
        ids = torch.zeros(num_rows, data.max_text_length, dtype=torch.int64)
        return {
            "pixel_values": torch.zeros(num_rows, 3, data.image_size, data.image_size, dtype=torch.uint8),
            "waveform": torch.zeros(num_rows, data.num_audio_samples),
            "num_audio_samples": torch.full((num_rows,), data.num_audio_samples),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """A third of the symmetric InfoNCE of each pair of modalities."""
        section, anchors = self.config.loss, batch.get("anchors")
        return {
            f"{first}_{second}": info_nce(
                outputs[f"{first}_features"],
                outputs[f"{second}_features"],
                outputs["logit_scale"],
                image_key=batch[f"{first}_key"],
                text_key=batch[f"{second}_key"],
                positives=section.positives,
                label_smoothing=section.label_smoothing,
                chunk_size=section.chunk_size,
                anchors=None if anchors is None else (int(anchors[0]), int(anchors[1])),
            )
            / len(PAIRS)
            for first, second in PAIRS
        }

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        kinds = [kind for kind in MODALITIES if f"{kind}_features" in outputs]
        return {f"{kind}_features": outputs[f"{kind}_features"] for kind in kinds} | {
            f"{kind}_row": batch["sample_id"] for kind in kinds
        }

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """Recall in all six directions, 0 to 1, and the mean of all."""
        opened = open_spoken_split(self.config.data.path, split)
        features = {kind: predictions[f"{kind}_features"][predictions[f"{kind}_row"].argsort()] for kind in MODALITIES}
        scores: dict[str, float] = {}
        for query, target in DIRECTIONS:
            try:
                matches = opened.matches(query, target)
                found = recall_at(features[query], features[target], matches, ks=RECALL_AT)
            except ValueError as error:
                raise UserError(f"{self.config.data.path}, split {split}: recall can't be taken, {error}.") from error
            scores |= {f"{query}_to_{target}_recall@{k}": value for k, value in found.items()}
            scores[f"{query}_to_{target}_mean_recall"] = sum(found.values()) / len(found)
        mean = sum(scores[f"{query}_to_{target}_mean_recall"] for query, target in DIRECTIONS) / len(DIRECTIONS)
        return {"mean_recall": mean, **scores}

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        load_senses(model, folder)

    def export(self, model: nn.Module, folder: str) -> None:
        """Encoders and aligner in one file, and the tokenizer."""
        save_senses(model, folder)
        export_tokenizer(find_tokenizer(self.config.data.tokenizer, self.config.data.path), folder)

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        assert isinstance(config, MultimodalAlignmentConfig)
        # The export holds the tokenizer too, so the one of the dataset need not be there any more; nor stored features.
        return config.model_copy(
            update={"data": config.data.model_copy(update={"tokenizer": folder, "features": None})}
        )

    def train_metrics(self, outputs: Batch) -> dict[str, Any]:
        """The temperature, and how often a row's own partner beats the rest of its batch, which is no recall."""
        size = self.config.loss.chunk_size or CHUNK_SIZE
        return {"temperature": 1 / outputs["logit_scale"].item()} | {
            f"in_batch_accuracy/{query}_to_{target}": in_batch_accuracy(
                outputs[f"{query}_features"], outputs[f"{target}_features"], chunk_size=size
            )
            for query, target in PAIRS
        }
