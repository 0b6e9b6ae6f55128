"""What is trained. A task knows its model, data, losses and scores; it never knows how many ranks there are."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel_train.config.schema import RunConfig
from accel_train.data.dataset import Dataset
from accel_train.data.order import Buckets
from accel_train.errors import UserError

Batch = dict[str, Tensor]


class Task(ABC):
    """One kind of training. `step.py` calls `losses`, `evaluate.py` calls `predictions` and `scores`.

    Every batch holds `sample_id` (n,), an integer that names a row of the dataset, beside the task's own columns, all with
    n rows. The model is always called as `model(batch)` and returns named outputs: n rows each, or one shared value for
    the names in `shared_outputs`.
    """

    config_class: ClassVar[type[RunConfig]] = RunConfig
    """What a configuration of this task holds: RunConfig, or a subclass with further sections."""
    compares_whole_batch: bool = False
    """True: the loss compares samples with each other, so it is taken once over the global batch (`cached`).
    False: the loss is a mean over targets that adds up over micro-batches (`summed`)."""
    shared_outputs: ClassVar[frozenset[str]] = frozenset()
    """Outputs without a row for each sample, of shape (1,), such as logit_scale."""
    loss_columns: tuple[str, ...] = ()
    """Batch columns that `losses` reads. Under `cached` they come from all ranks with the outputs."""
    splits_loss: ClassVar[bool] = False
    """Under `cached`: True if `losses` takes only the rows named by `batch["anchors"]` (start, stop), so that ranks share
    the work and their losses add up. False: every rank computes the whole loss."""
    ring_outputs: tuple[str, ...] = ()
    """Under `cached` on several ranks, beside `splits_loss`: outputs that go around the ranks in blocks, each the rows of
    one rank, so that none is gathered. `losses` is called for each block, with the block's rows of these outputs, this
    rank's rows of the others, and the loss columns of this rank's rows followed by the block's (which are its own once: then
    they stand there once). `batch["anchors"]` and `batch["block"]` (start, stop) say which rows of the columns are whose,
    `batch["num_rows"]` how many the global batch has. Over all ranks and blocks the losses add up."""
    score_names: tuple[str, ...] = ()
    """Every score that `scores` gives, the one that judges a run first unless `evaluation.best_score` names another."""
    output_inputs: ClassVar[dict[str, tuple[str, ...]]] = {}
    """For each output, the batch columns that only it needs. An output that needs no gradient (a frozen tower) is left out
    of the second pass of `cached` by leaving out these columns."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @property
    def best_score(self) -> str:
        """The score that decides which checkpoint is best."""
        return self.config.evaluation.best_score or self.score_names[0]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """The model, with its starting weights, on the current default device."""

    @abstractmethod
    def build_dataset(self, split: str) -> Dataset:
        """Training samples of a split."""

    def num_samples(self, split: str) -> int:
        """Training samples of a split, without more than is needed to count them."""
        return len(self.build_dataset(split))

    def buckets(self, dataset: Dataset) -> Buckets | None:
        """Lengths of the training samples, where global batches are to hold samples of like length. None: they aren't."""
        return None

    def evaluation_sets(self, split: str) -> list[Dataset]:
        """What `evaluate` runs through the model, one after the other; each sample is counted once."""
        return [self.build_dataset(split)]

    def num_targets(self, batch: Batch) -> Tensor:
        """What a summed loss is normalised by: samples, or tokens."""
        return torch.tensor(float(len(batch["sample_id"])))

    def scored_of(self, splits: list[str]) -> list[str]:
        """Without the training split, which may have a billion samples, unless it is the only one."""
        return [split for split in splits if split != self.config.data.train_split] or splits

    def check_splits(self, model: nn.Module | None, splits: list[str]) -> list[str]:
        """Looks whether these splits can be scored, and what is stored of them fits the model. Raises UserError.

        The model has its weights; None stands for that of a resumed run, whose weights are yet to come. Returns lines for
        the log.
        """
        return []

    def prepare_training(self, device: torch.device) -> list[str]:
        """Loads, once and before the first step, what training needs beside model and data: a frozen teacher, say.

        Every rank calls it. Returns lines for the run's log. Raises UserError.
        """
        return []

    def weight_limits(self) -> dict[str, float]:
        """The largest value that a parameter, by name, may have after an update."""
        return {}

    def add_to_batch(self, batch: Batch) -> Batch:
        """Adds frozen inputs on the device, such as teacher features. The batch may still be in host memory."""
        return batch

    @abstractmethod
    def losses(self, outputs: Batch, batch: Batch) -> dict[str, Tensor]:
        """Named terms, already weighted; their sum is minimised. A pure function."""

    @abstractmethod
    def predictions(self, outputs: Batch, batch: Batch) -> Batch:
        """Rows to keep for `scores`, one for each row of the batch."""

    @abstractmethod
    def scores(self, predictions: dict[str, Tensor], split: str) -> dict[str, float]:
        """Scores to maximise, over the whole split. `loss` may stand beside them, to compare with the training loss."""

    @property
    def has_prediction_rows(self) -> bool:
        return type(self).prediction_rows is not Task.prediction_rows

    def prediction_rows(self, predictions: dict[str, Tensor], split: str) -> Iterator[dict[str, Any]]:
        """What a table of predictions holds for each sample of the split, in its order, always with the same columns."""
        raise UserError(f"--predictions: {type(self).__name__} has no table of predictions.")

    def train_metrics(self, outputs: Batch) -> dict[str, Any]:
        """Further values to log from one step's outputs, such as the temperature."""
        return {}

    def example_batch(self, num_rows: int) -> Batch | None:
        """A training micro-batch of the right shapes with any values, from which `plan` learns what a step holds and
        computes. A column of `loss_columns` that is left out counts as one integer a row. None: unknown without data."""
        return None

    def hazards(self) -> list[str]:
        """What `plan` should point out about the task's own sections."""
        return []

    def frozen_bytes(self) -> int:
        """Memory of what `prepare_training` keeps on the device: a frozen teacher, say."""
        return 0

    def chance_of_a_false_negative(self) -> float:
        """Probability that two training samples are compared as different although they are equal."""
        return 0.0

    def starting_weights(self, weights: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], str]:
        """What `initialize_from` puts into a built model from the weights of a checkpoint, and a remark for the log.

        By default these weights, name by name. A task whose model holds another task's model may place them there.
        """
        return weights, ""

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """What the log should say of how a built model got its weights: position embeddings that were resized, say."""
        return ()

    def load_pretrained(self, model: nn.Module, folder: str) -> None:
        """Fills a built model with the weights of a Hugging Face folder. Raises UserError where they don't fit."""
        raise UserError(f"initialize_from: {type(self).__name__} reads checkpoints only; {folder} is not one.")

    def load_optimizer_state(self, model: nn.Module, source: str) -> dict[str, dict[str, Tensor]]:
        """AdamW's `exp_avg`, `exp_avg_sq` and `step` of each parameter, from a foreign checkpoint. Raises UserError."""
        raise UserError(f"initialize_optimizer: {source} is no run or checkpoint, so it holds no optimizer state.")

    @staticmethod
    def config_of_export(config: RunConfig, folder: str) -> RunConfig:
        """The configuration that rebuilds an exported model from its own folder, without what it was trained from."""
        return config

    def export(self, model: nn.Module, folder: str) -> None:
        """Writes a Hugging Face folder that `from_pretrained` loads."""
        raise UserError(f"{type(self).__name__} does not say how to export its model.")
