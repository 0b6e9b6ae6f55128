"""Classification of texts with any sequence classifier of transformers."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.config.schema import RunConfig
from accel_train.config.sequence_classification import ClassifierSection, SequenceClassificationConfig
from accel_train.data.dataset import Dataset
from accel_train.data.labelled_split import open_labelled_split, read_labels
from accel_train.data.labelled_texts import LabelledTextDataset, text_tokenizer
from accel_train.data.order import Buckets
from accel_train.data.tokenizer_files import export_tokenizer, find_tokenizer
from accel_train.metrics.f1 import macro_f1
from accel_train.models.sequence_classifier import (
    SequenceClassifier,
    build_classifier,
    has_fitting_head,
    load_classifier,
    save_classifier,
)
from accel_train.tasks.task import Batch, Task


class SequenceClassificationTask(Task):
    """One label for each text; cross-entropy, accuracy and macro F1."""

    config: SequenceClassificationConfig
    config_class: ClassVar[type[RunConfig]] = SequenceClassificationConfig
    score_names: tuple[str, ...] = ("accuracy", "macro_f1")

    def build_model(self) -> nn.Module:
        data = self.config.data
        tokenizer = text_tokenizer(data)
        return build_classifier(
            self.config.model,
            read_labels(data.path),
            vocab_size=tokenizer.vocab_size,
            pad_id=tokenizer.pad_id,
            max_length=data.max_text_length,
        )

    def build_dataset(self, split: str) -> Dataset:
        return LabelledTextDataset(self.config.data, split, seed=self.config.seed)

    def num_samples(self, split: str) -> int:
        return len(open_labelled_split(self.config.data.path, split).samples)

    def buckets(self, dataset: Dataset) -> Buckets | None:
        window = self.config.data.length_window
        if window == 0:
            return None
        assert isinstance(dataset, LabelledTextDataset)
        return Buckets(dataset.lengths(), window)

    def example_batch(self, num_rows: int) -> Batch:
        length = self.config.data.max_text_length
        ids = torch.full((num_rows, length), text_tokenizer(self.config.data).pad_id)
        label = torch.zeros(num_rows, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": label}

    def hazards(self) -> list[str]:
        source = self.config.model.pretrained
        if source is None or has_fitting_head(source, read_labels(self.config.data.path)):
            return []
        return [f"model.pretrained: {source} has no head for these labels; one is drawn from the seed."]

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        return tuple(self.hazards())

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": self._loss(outputs["logits"].float(), batch["label"])}

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        return {"logits": outputs["logits"].float(), "label": batch["label"], "text_row": batch["sample_id"]}

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """Accuracy and macro F1, 0 to 1, and the loss. Of equal logits the first class is predicted."""
        logits, labels = predictions["logits"], predictions["label"]
        predicted = logits.argmax(1)
        return {
            "accuracy": (predicted == labels).double().mean().item(),
            "macro_f1": macro_f1(predicted, labels, logits.shape[1]),
            "loss": self._loss(logits, labels).item(),
        }

    def prediction_rows(self, predictions: dict[str, Tensor], split: str) -> Iterator[dict[str, Any]]:
        """Every text with its label, the predicted one and the probability of that, in the order of the split."""
        opened = open_labelled_split(self.config.data.path, split)
        probabilities, predicted = predictions["logits"].softmax(1).max(1)
        for place in predictions["text_row"].argsort().tolist():
            row = int(predictions["text_row"][place])
            yield {
                "text_id": opened.samples.value("text_id", row),
                "text": opened.samples.value("text", row),
                "label": opened.labels[int(predictions["label"][place])],
                "predicted": opened.labels[int(predicted[place])],
                "probability": round(float(probabilities[place]), 6),
            }

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        assert isinstance(model, SequenceClassifier)
        load_classifier(model, folder, "initialize_from")

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        assert isinstance(config, SequenceClassificationConfig)
        model = ClassifierSection(pretrained=folder, attention=config.model.attention)
        # The export holds the tokenizer too, so the one of the dataset need not be there any more.
        data = config.data.model_copy(update={"tokenizer": folder})
        return config.model_copy(update={"model": model, "data": data})

    def export(self, model: nn.Module, folder: str) -> None:
        """A Hugging Face folder with the model, its labels and its tokenizer."""
        assert isinstance(model, SequenceClassifier)
        save_classifier(model, folder)
        export_tokenizer(find_tokenizer(self.config.data.tokenizer, self.config.data.path), folder)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.config.loss.label_smoothing)
