"""Image-text datasets over one split: its pairs for training, each image and each text once for evaluation."""

import random

import numpy as np
import torch
from torch import Tensor

from accel_train.config.contrastive import PairData
from accel_train.config.scorer import RatedData
from accel_train.data.arrow_split import Split
from accel_train.data.augmented_image import image_of_row
from accel_train.data.dataset import UnreadableSample
from accel_train.data.padding import Padding
from accel_train.data.splits import open_split
from accel_train.data.text import CaptionTokenizer, open_tokenizer
from accel_train.data.tokenizer_files import find_tokenizer
from accel_train.data.transforms import UnreadableImage, evaluation_image, sample_generator


def tokenizer_path(data: PairData | RatedData) -> str:
    """The folder or file that `data.tokenizer` names."""
    return find_tokenizer(data.tokenizer, data.path)


def caption_tokenizer(data: PairData) -> CaptionTokenizer:
    """The tokenizer of a run, checked against the augmentation it is asked for."""
    return open_tokenizer(
        tokenizer_path(data),
        data.max_text_length,
        mask_tokens=data.augmentation.mask_tokens,
        cleaning=data.text_cleaning,
    )


class Captions:
    """Token columns of a run's captions, and how a batch of them is padded."""

    def __init__(self, data: PairData, *, whole_length: bool) -> None:
        self._tokenizer = caption_tokenizer(data)
        self._whole_length = whole_length
        values = {"input_ids": self._tokenizer.pad_id, "attention_mask": 0}
        self.padding = Padding(values, data.pad_to_multiple_of, limit=data.max_text_length)

    def tokens(
        self, text: str, *, mask_share: float = 0.0, generator: random.Random | None = None
    ) -> dict[str, Tensor]:
        """input_ids and attention_mask of one caption, at least one token long."""
        input_ids, attention_mask = self._tokenizer.encode(text, mask_share=mask_share, generator=generator)
        length = len(input_ids) if self._whole_length else max(int(attention_mask.sum()), 1)
        return {"input_ids": input_ids[:length], "attention_mask": attention_mask[:length]}


class PairDataset:
    """One row for each pair of a split, augmented for training; the row is the sample.

    Columns: pixel_values uint8 (3, image_size, image_size), input_ids and attention_mask int64, and the scalars image_key,
    text_key, sample_id. Captions are as long as they are, and a batch is padded to its longest; with `whole_length` they
    are all max_text_length long.
    """

    def __init__(self, data: PairData, split: str, *, seed: int, whole_length: bool = False) -> None:
        self.split: Split = open_split(data.path, split)
        self.fingerprint = f"pairs {self.split.fingerprint}"
        self._data = data
        self._seed = seed
        self._captions = Captions(data, whole_length=whole_length)
        self.padding = self._captions.padding

    def __len__(self) -> int:
        return self.split.num_pairs

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        pairs, images, texts = self.split.pairs, self.split.images, self.split.texts
        image_row, text_row = pairs.value("image_row", row), pairs.value("text_row", row)
        return {
            "pixel_values": self._pixels(row, image_row, epoch),
            **self._tokens(row, texts.value("text", text_row), epoch),
            "image_key": torch.tensor(images.value("image_key", image_row)),
            "text_key": torch.tensor(texts.value("text_key", text_row)),
            "sample_id": torch.tensor(row),
        }

    def caption_bytes(self) -> np.ndarray:
        """UTF-8 bytes of every row's caption, int32: nearly in the order of their tokens, and known without reading them."""
        return self.split.texts.num_bytes("text")[self.split.pairs.column("text_row")]

    def _pixels(self, row: int, image_row: int, epoch: int | None) -> Tensor:
        augmentation = self._data.augmentation
        return image_of_row(
            self.split.images,
            image_row,
            self._data,
            augmentation,
            split=self.split.name,
            seed=self._seed,
            epoch=epoch,
            sample=row,
            auto_augment=augmentation.auto_augment,
        )

    def _tokens(self, row: int, text: str, epoch: int | None) -> dict[str, Tensor]:
        generator = None if epoch is None else sample_generator("text", self._seed, epoch, row)
        return self._captions.tokens(text, mask_share=self._data.augmentation.mask_tokens, generator=generator)


class ImageDataset:
    """Every image of a split once, without augmentation. Columns: pixel_values as in PairDataset, sample_id."""

    def __init__(self, data: PairData, split: str) -> None:
        self.split: Split = open_split(data.path, split)
        self.fingerprint = f"images {self.split.fingerprint}"
        self._data = data

    def __len__(self) -> int:
        return self.split.num_images

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        try:
            encoded, data = self.split.images.value("image", row), self._data
            pixels = evaluation_image(encoded, data.image_size, data.resize, data.decoding)
        except UnreadableImage as error:
            raise unreadable_image(self.split, row, error) from error
        return {"pixel_values": pixels, "sample_id": torch.tensor(row)}


class TextDataset:
    """Every text of a split once. Columns: input_ids and attention_mask as in PairDataset, sample_id."""

    def __init__(self, data: PairData, split: str, *, whole_length: bool = False) -> None:
        self.split: Split = open_split(data.path, split)
        self.fingerprint = f"texts {self.split.fingerprint}"
        self._captions = Captions(data, whole_length=whole_length)
        self.padding = self._captions.padding

    def __len__(self) -> int:
        return self.split.num_texts

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        return self._captions.tokens(self.split.texts.value("text", row)) | {"sample_id": torch.tensor(row)}


def unreadable_image(split: Split, image_row: int, error: UnreadableImage) -> UnreadableSample:
    """Names the split and the image's id, so that it can be found in the source."""
    return UnreadableSample(f"{split.name}: image {split.images.value('image_id', image_row)!r}: {error}")
