"""Image quality and text-image consistency on top of a CLIP-like model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel_train.config.schema import RunConfig
from accel_train.config.scorer import ScorerConfig
from accel_train.data.dataset import Dataset
from accel_train.data.pairs import tokenizer_path
from accel_train.data.rated_images import RATINGS, RatedImageDataset, open_rated_split, prompt_tokenizer
from accel_train.data.tokenizer_files import export_tokenizer
from accel_train.errors import CheckFailed, UserError
from accel_train.losses.scorer import explanation_loss, rating_loss
from accel_train.metrics.correlation import kendall, pearson, spearman
from accel_train.models.build import adapt_to_training
from accel_train.models.pretrained import building_on_meta
from accel_train.models.scorer import CLIP, Scorer, build_scorer
from accel_train.models.scorer_files import CLIP_FOLDER, is_scorer_folder, load_clip, load_scorer, save_scorer
from accel_train.optim.frozen import never_trained
from accel_train.tasks.clip_parts import check_tokenizer, section_of_export
from accel_train.tasks.task import Batch, Task

CORRELATIONS = {"srocc": spearman, "plcc": pearson, "krocc": kendall}


class ScorerTask(Task):
    """Two ratings of an (image, prompt) pair; their correlations over the split as scores.

    The explanation term compares the samples of the global batch with each other, so with it the task is `cached`; without
    it the losses add up over samples.
    """

    config: ScorerConfig
    config_class: ClassVar[type[RunConfig]] = ScorerConfig
    shared_outputs: ClassVar[frozenset[str]] = frozenset({"logit_scale"})
    loss_columns = (*RATINGS, "explanation_key", "has_explanation")
    score_names: tuple[str, ...] = (
        "srocc",
        *(f"{correlation}_{rating}" for correlation in CORRELATIONS for rating in RATINGS),
    )
    output_inputs: ClassVar[dict[str, tuple[str, ...]]] = {
        "explanation_features": ("explanation_ids", "explanation_mask")
    }

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.compares_whole_batch = self.config.loss.explanation_weight > 0
        self._mean_ratings: dict[str, float] | None = None

    def build_model(self) -> nn.Module:
        model = build_scorer(self.config)
        section = self.config.model.clip
        frozen = {name.removeprefix(CLIP) for name in never_trained(model, self.config)}
        adapt_to_training(model.clip, section, frozen)
        if not building_on_meta():
            check_tokenizer(prompt_tokenizer(self.config.data), model.clip, section)
        return model

    def weight_limits(self) -> dict[str, float]:
        """As in contrastive training: logit_scale stays at its clamp."""
        largest = self.config.model.clip.max_logit_scale
        return {} if largest is None or not self.compares_whole_batch else {f"{CLIP}logit_scale": math.log(largest)}

    def build_dataset(self, split: str) -> Dataset:
        with_explanations = self.compares_whole_batch
        dataset = RatedImageDataset(self.config.data, split, seed=self.config.seed, with_explanations=with_explanations)
        if with_explanations and dataset.split.num_explanations == 0:
            raise UserError(
                f"loss.explanation_weight is {self.config.loss.explanation_weight:g}, but the split {split} of "
                f"{self.config.data.path} has no explanations. Set it to 0, and take ^pair_projection out of the "
                "towers: there is none then."
            )
        return dataset

    def num_samples(self, split: str) -> int:
        return open_rated_split(self.config.data.path, split).num_samples

    def check_splits(self, model: nn.Module | None, splits: list[str]) -> list[str]:
        """Ratings that are all the same can be trained on, but no correlation with them is defined."""
        for split in self.scored_of(splits):
            opened = open_rated_split(self.config.data.path, split)
            for name in RATINGS:
                self._check_ratings(name, opened.ratings(name).float(), split)
        return []

    def _check_ratings(self, name: str, rated: Tensor, split: str) -> None:
        if len(rated) < 2 or bool((rated == rated[0]).all()):
            raise UserError(
                f"{self.config.data.path}, split {split}: every rating of {name} is the same, so no correlation with it "
                "is defined. Evaluate on a split with several ratings."
            )

    def evaluation_sets(self, split: str) -> list[Dataset]:
        return [RatedImageDataset(self.config.data, split, seed=self.config.seed, with_explanations=False)]

    def example_batch(self, num_rows: int) -> Batch:
        size, length = self.config.data.image_size, self.config.data.max_text_length
        ids = torch.zeros(num_rows, length, dtype=torch.int64)
        batch = {
            "pixel_values": torch.zeros(num_rows, 3, size, size, dtype=torch.uint8),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        if self.compares_whole_batch:
            batch |= {"explanation_ids": ids, "explanation_mask": torch.ones_like(ids)}
        return batch

    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        section = self.config.loss
        weights = {"quality": section.quality_weight, "consistency": section.consistency_weight}
        losses = {name: weights[name] * self._rating_loss(name, outputs, batch) for name in RATINGS}
        if self.compares_whole_batch:
            losses["explanation"] = section.explanation_weight * explanation_loss(
                outputs["pair_features"],
                outputs["explanation_features"],
                outputs["logit_scale"],
                explanation_key=batch["explanation_key"],
                has_explanation=batch["has_explanation"],
            )
        return losses

    def _rating_loss(self, name: str, predicted: Batch, rated: Batch) -> Tensor:
        section = self.config.loss
        return rating_loss(
            predicted[name],
            rated[name],
            name=section.name,
            beta=section.smooth_l1_beta,
            label_smoothing=section.label_smoothing,
            mean_rating=self._mean_rating(name) if section.label_smoothing else 0.0,
        )

    def _mean_rating(self, name: str) -> float:
        """Of the whole training split, so that a target does not depend on the batch it is in."""
        if self._mean_ratings is None:
            self._mean_ratings = open_rated_split(self.config.data.path, self.config.data.train_split).means
        return self._mean_ratings[name]

    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        rated = {f"{name}_rating": batch[name] for name in RATINGS}
        return {name: outputs[name] for name in RATINGS} | rated | {"sample_row": batch["sample_id"]}

    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """SROCC, PLCC and KROCC of both ratings, -1 to 1, and `srocc`, the mean of the two SROCC."""
        scores: dict[str, float] = {}
        for name in RATINGS:
            predicted, rated = predictions[name], predictions[f"{name}_rating"]
            if not predicted.isfinite().all():
                raise CheckFailed(f"the model predicts a {name} that is not a finite number; it can't be scored.")
            self._check_ratings(name, rated, split)
            scores |= {f"{kind}_{name}": found(predicted, rated) for kind, found in CORRELATIONS.items()}
        rated_batch = {name: predictions[f"{name}_rating"] for name in RATINGS}
        weights = {"quality": self.config.loss.quality_weight, "consistency": self.config.loss.consistency_weight}
        loss = sum(weights[name] * float(self._rating_loss(name, predictions, rated_batch)) for name in RATINGS)
        return {"srocc": (scores["srocc_quality"] + scores["srocc_consistency"]) / 2, **scores, "loss": loss}

    def prediction_rows(self, predictions: dict[str, Tensor], split: str) -> Iterator[dict[str, Any]]:
        """A row for each sample, in the order of the split, with ratings on the scale of the source."""
        opened = open_rated_split(self.config.data.path, split)
        for place in predictions["sample_row"].argsort().tolist():
            row = int(predictions["sample_row"][place])
            values = {
                column: float(f"{opened.on_source_scale(name, float(predictions[key][place])):.7g}")  # what fp32 holds
                for name in RATINGS
                for column, key in ((f"{name}_rated", f"{name}_rating"), (f"{name}_predicted", name))
            }
            image_row = opened.samples.value("image_row", row)
            yield {
                "image_id": opened.images.value("image_id", image_row),
                "prompt": opened.samples.value("prompt", row),
                **values,
            }

    def starting_weights(self, weights: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
        """A scorer's checkpoint as it is; that of a contrastive run becomes the CLIP in it, and the heads start afresh."""
        if any(name.startswith(CLIP) for name in weights):
            return weights, ""
        own = model.state_dict()
        placed = {f"{CLIP}{name}": value for name, value in weights.items()}
        if f"{CLIP}logit_bias" not in own:
            placed.pop(f"{CLIP}logit_bias", None)  # of a sigmoid loss; it moves all similarities alike
        heads = {name: value for name, value in own.items() if not name.startswith(CLIP)}
        return heads | placed, f", into {CLIP}*; the {len(heads)} tensors of the heads start afresh"

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        """An export of this task, or the folder of a CLIP-like model alone."""
        assert isinstance(model, Scorer)
        if is_scorer_folder(folder):
            load_scorer(model, folder, self.config)
        else:
            load_clip(model, folder, self.config)

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        assert isinstance(config, ScorerConfig)
        clip_folder = str(Path(folder) / CLIP_FOLDER)
        model = config.model.model_copy(update={"clip": section_of_export(config.model.clip, clip_folder)})
        # The export holds the tokenizer too: the dataset that it came from need not be there any more.
        data = config.data.model_copy(update={"tokenizer": clip_folder})
        return config.model_copy(update={"model": model, "data": data})

    def export(self, model: nn.Module, folder: str) -> None:
        """`clip/`, a Hugging Face folder with the tokenizer, and the heads in heads.safetensors."""
        assert isinstance(model, Scorer)
        save_scorer(model, folder, self.config)
        export_tokenizer(tokenizer_path(self.config.data), str(Path(folder) / CLIP_FOLDER))
