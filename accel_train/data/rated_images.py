"""Rated images: one split of a dataset folder for the task `scorer`, as memory-mapped Arrow files.

    FOLDER/dataset.json                       format version, task, ranges of the ratings, counts and means of each split
    FOLDER/tokenizer/                         optional
    FOLDER/SPLIT/images.arrow                 image_id string, image binary (encoded as in the source), image_key int64
    FOLDER/SPLIT/samples.arrow                image_row int64, prompt string, quality double, consistency double,
                                              explanation string or null

Ratings are stored from 0 to 1; dataset.json has the range that they were in.
"""

from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from accel_train.config.scorer import RatedData
from accel_train.data.arrow_split import SCHEMAS, ArrowRows, check_tables, dataset_folder, read_description
from accel_train.data.arrow_writer import content_key
from accel_train.data.augmented_image import image_of_row
from accel_train.data.pairs import tokenizer_path
from accel_train.data.text import CaptionTokenizer, open_tokenizer
from accel_train.errors import UserError

TASK = "scorer"
RATINGS = ("quality", "consistency")
RATED_SCHEMAS = {
    "images": SCHEMAS["images"],
    "samples": pa.schema(
        [
            ("image_row", pa.int64()),
            ("prompt", pa.string()),
            ("quality", pa.float64()),
            ("consistency", pa.float64()),
            ("explanation", pa.string()),
        ]
    ),
}


@dataclass(frozen=True)
class RatedSplit:
    """Images and samples of one split."""

    name: str
    fingerprint: str
    """Digest of all ids, contents, prompts and ratings, written at import."""
    images: ArrowRows
    samples: ArrowRows
    means: dict[str, float]
    """Mean quality and consistency, from 0 to 1."""
    ranges: dict[str, tuple[float, float]]
    """Smallest and largest rating on the scale of the source."""
    num_explanations: int

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    def ratings(self, name: str) -> Tensor:
        """All ratings of one kind, (num_samples,) fp64, from 0 to 1."""
        return torch.from_numpy(self.samples.column(name).copy())

    def on_source_scale(self, name: str, rating: float) -> float:
        lowest, highest = self.ranges[name]
        return lowest + rating * (highest - lowest)


def open_rated_split(path: str, split: str) -> RatedSplit:
    """Opens one split, after checking that its files are whole and belong together. Raises UserError."""
    folder = dataset_folder(path)
    description = read_description(folder, TASK, "num_samples")
    splits = description["splits"]
    if split not in splits:
        raise UserError(f"{path}: no split {split!r}; it has {', '.join(sorted(splits))}.", code="AT503")
    tables = {name: ArrowRows(folder / split / f"{name}.arrow", schema) for name, schema in RATED_SCHEMAS.items()}
    try:
        described = {name: splits[split][f"num_{name}"] for name in tables}
        means = {name: float(splits[split][f"mean_{name}"]) for name in RATINGS}
        ranges = {name: (float(low), float(high)) for name, (low, high) in description["rating_ranges"].items()}
        fingerprint, num_explanations = splits[split]["fingerprint"], int(splits[split]["num_explanations"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'dataset.json'}: damaged ({error!r}). Import the dataset again.") from error
    for name, rows in tables.items():
        if described[name] != len(rows):
            raise UserError(
                f"{rows.path}: has {len(rows)} rows, but dataset.json says {described[name]}. They do not belong together; "
                "import the dataset again."
            )
    check_tables(tables)
    return RatedSplit(split, fingerprint, tables["images"], tables["samples"], means, ranges, num_explanations)


def prompt_tokenizer(data: RatedData) -> CaptionTokenizer:
    return open_tokenizer(tokenizer_path(data), data.max_text_length, cleaning=data.text_cleaning)


class RatedImageDataset:
    """One row for each sample of a split.

    Columns: pixel_values uint8 (3, image_size, image_size), input_ids and attention_mask int64 (max_text_length,), and
    the scalars quality and consistency (fp32, 0 to 1) and sample_id. `with_explanations` adds explanation_ids and
    explanation_mask, and the scalars has_explanation (bool) and explanation_key, a hash of the explanation.
    """

    def __init__(self, data: RatedData, split: str, *, seed: int, with_explanations: bool) -> None:
        self.split: RatedSplit = open_rated_split(data.path, split)
        self.fingerprint = f"rated images {self.split.fingerprint}"
        self._data = data
        self._seed = seed
        self._with_explanations = with_explanations
        self._tokenizer = prompt_tokenizer(data)

    def __len__(self) -> int:
        return self.split.num_samples

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        samples = self.split.samples
        input_ids, attention_mask = self._tokenizer.encode(samples.value("prompt", row))
        columns = {
            "pixel_values": self._pixels(row, samples.value("image_row", row), epoch),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            **{name: torch.tensor(samples.value(name, row), dtype=torch.float32) for name in RATINGS},
            "sample_id": torch.tensor(row),
        }
        return columns | self._explanation(samples.value("explanation", row)) if self._with_explanations else columns

    def _pixels(self, row: int, image_row: int, epoch: int | None) -> Tensor:
        return image_of_row(
            self.split.images,
            image_row,
            self._data,
            self._data.augmentation,
            split=self.split.name,
            seed=self._seed,
            epoch=epoch,
            sample=row,
        )

    def _explanation(self, text: str | None) -> dict[str, Tensor]:
        """A row without an explanation has an empty one, which `has_explanation` takes out of the loss."""
        input_ids, attention_mask = self._tokenizer.encode(text or "")
        return {
            "explanation_ids": input_ids,
            "explanation_mask": attention_mask,
            "explanation_key": torch.tensor(content_key((text or "").encode())),
            "has_explanation": torch.tensor(text is not None),
        }
