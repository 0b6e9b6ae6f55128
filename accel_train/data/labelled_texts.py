"""Texts with labels over one split, as tokens of their own length."""

import numpy as np
import torch
from torch import Tensor

from accel_train.config.sequence_classification import LabelledTextData
from accel_train.data.dataset import UnreadableSample
from accel_train.data.labelled_split import LabelledSplit, open_labelled_split
from accel_train.data.padding import Padding
from accel_train.data.text import CaptionTokenizer, open_tokenizer
from accel_train.data.tokenizer_files import find_tokenizer
from accel_train.data.transforms import sample_generator


def text_tokenizer(data: LabelledTextData) -> CaptionTokenizer:
    """The tokenizer of a run, checked against the augmentation it is asked for."""
    return open_tokenizer(
        find_tokenizer(data.tokenizer, data.path),
        data.max_text_length,
        mask_tokens=data.augmentation.mask_tokens,
        cleaning=data.text_cleaning,
    )


class LabelledTextDataset:
    """One row for each text of a split.

    Columns: input_ids and attention_mask int64 (tokens of the text,), and the scalars label and sample_id. A batch is padded
    to its longest text: `padding` says with what.
    """

    def __init__(self, data: LabelledTextData, split: str, *, seed: int) -> None:
        self.split: LabelledSplit = open_labelled_split(data.path, split)
        self.fingerprint = f"labelled texts {self.split.fingerprint}"
        self._mask_tokens = data.augmentation.mask_tokens
        self._seed = seed
        self._tokenizer = text_tokenizer(data)
        values = {"input_ids": self._tokenizer.pad_id, "attention_mask": 0}
        self.padding = Padding(values, data.pad_to_multiple_of, limit=data.max_text_length)

    def __len__(self) -> int:
        return len(self.split.samples)

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        samples = self.split.samples
        generator = None if epoch is None else sample_generator("text", self._seed, epoch, row)
        input_ids, attention_mask = self._tokenizer.encode(
            samples.value("text", row), mask_share=self._mask_tokens, generator=generator
        )
        length = int(attention_mask.sum())
        if length == 0:
            text_id = samples.value("text_id", row)
            raise UnreadableSample(f"{self.split.name}: text {text_id!r} has no tokens")
        return {
            "input_ids": input_ids[:length],
            "attention_mask": attention_mask[:length],
            "label": torch.tensor(samples.value("label", row)),
            "sample_id": torch.tensor(row),
        }

    def lengths(self) -> np.ndarray:
        """Tokens of every text, int32. Reads the whole split, at some ten thousand texts a second."""
        texts = (self.split.samples.value("text", row) for row in range(len(self)))
        return np.fromiter((int(self._tokenizer.encode(text)[1].sum()) for text in texts), np.int32, len(self))
