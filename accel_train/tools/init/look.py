"""Looks at an imported dataset: counts, lengths and sizes that a configuration depends on."""

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from accel_train.data.arrow_split import ArrowRows, Rows, dataset_folder, read_description
from accel_train.data.labelled_split import open_labelled_split
from accel_train.data.rated_images import RATINGS, open_rated_split
from accel_train.data.splits import open_split
from accel_train.data.spoken_split import open_spoken_split
from accel_train.data.transforms import UnreadableImage, open_image
from accel_train.data.wav import UnreadableAudio, read_wav
from accel_train.errors import UserError

MOST_TEXTS, MOST_IMAGES, MOST_RECORDINGS = 20_000, 500, 300
"""So many of them are looked at, spread evenly over the split."""
VALID_SPLITS = ("valid", "validation", "dev", "val")
COUNTED = {
    "contrastive": "num_pairs",
    "scorer": "num_samples",
    "sequence_classification": "num_samples",
    "multimodal_llm": "num_samples",
}
"""What a split of each kind of dataset says of its size."""


@dataclass
class Seen:
    """A dataset as it was found. What a kind of dataset has not is None or empty."""

    path: str
    train_split: str
    valid_split: str | None
    num_samples: dict[str, int]
    """By split."""
    has_tokenizer: bool
    texts: list[str] = field(default_factory=list)
    """Texts of the training split."""
    image_side: int | None = None
    """Median of the shorter side, in pixels."""
    captions_per_image: float | None = None
    class_shares: dict[str, float] = field(default_factory=dict)
    rating_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    num_explained: int = 0
    audio_rate: int | None = None
    """The most frequent one, in samples a second."""
    audio_seconds: float | None = None
    """99 of 100 recordings are at most so long."""
    lines: list[str] = field(default_factory=list)
    """All of this in words."""

    @property
    def num_train(self) -> int:
        return self.num_samples[self.train_split]


def look(path: str, made_for: str) -> Seen:
    """`made_for` is a key of COUNTED, the task the dataset must have been imported for. Raises UserError."""
    folder = dataset_folder(path)
    splits = read_description(folder, made_for, COUNTED[made_for])["splits"]
    counts = {name: int(described[COUNTED[made_for]]) for name, described in splits.items()}
    seen = Seen(path, _train_split(path, counts), _valid_split(counts), counts, (folder / "tokenizer").is_dir())
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    seen.lines.append(f"{'pairs' if made_for == 'contrastive' else 'samples'} by split: {listed}")
    looks = {"contrastive": _pairs, "scorer": _rated, "sequence_classification": _labelled, "multimodal_llm": _spoken}
    looks[made_for](seen)
    return seen


def _train_split(path: str, counts: dict[str, int]) -> str:
    if "train" in counts:
        return "train"
    others = [name for name in counts if name not in (*VALID_SPLITS, "test")] or list(counts)
    if len(others) != 1:
        raise UserError(f"{path}: no split is called train; it has {', '.join(counts)}. Import it with split names.")
    return others[0]


def _valid_split(counts: dict[str, int]) -> str | None:
    return next((name for name in VALID_SPLITS if name in counts and len(counts) > 1), None)


def _pairs(seen: Seen) -> None:
    split = open_split(seen.path, seen.train_split)
    seen.captions_per_image = split.num_pairs / max(1, split.num_images)
    seen.lines.append(
        f"{split.num_images:,} images with {seen.captions_per_image:.1f} captions each, {split.num_texts:,} captions"
    )
    seen.texts = _texts(split.texts, "text")
    _images(seen, split.images)


def _rated(seen: Seen) -> None:
    split = open_rated_split(seen.path, seen.train_split)
    seen.rating_ranges, seen.num_explained = split.ranges, split.num_explanations
    for name in RATINGS:
        ratings = split.ratings(name)
        low, high = split.ranges[name]
        seen.lines.append(
            f"{name}: scale {low:g} to {high:g}, mean {split.on_source_scale(name, float(ratings.mean())):.2f}, "
            f"standard deviation {float(ratings.std(correction=0)) * (high - low):.2f}"
        )
    seen.lines.append(f"{split.num_explanations:,} of {split.num_samples:,} ratings are explained")
    seen.texts = _texts(split.samples, "prompt")
    _images(seen, split.images)


def _labelled(seen: Seen) -> None:
    split = open_labelled_split(seen.path, seen.train_split)
    counts = Counter(split.samples.column("label").tolist())
    shares = [counts[label] / max(1, len(split.samples)) for label in range(len(split.labels))]
    seen.class_shares = dict(zip(split.labels, shares, strict=True))
    largest, smallest = (pick(seen.class_shares.items(), key=lambda pair: pair[1]) for pick in (max, min))
    seen.lines.append(
        f"{len(split.labels)} classes: the largest, {largest[0]}, is {largest[1]:.1%}, the smallest, {smallest[0]}, "
        f"{smallest[1]:.1%}"
    )
    seen.texts = _texts(split.samples, "text")


def _spoken(seen: Seen) -> None:
    split = open_spoken_split(seen.path, seen.train_split)
    rates, seconds = [], []
    for row in _spread(len(split.recordings), MOST_RECORDINGS):
        try:
            samples, rate = read_wav(split.recordings.value("audio", row))
        except UnreadableAudio:
            continue  # training names it, and skips it if it may
        rates.append(rate)
        seconds.append(len(samples) / rate)
    if not rates:
        raise UserError(f"{seen.path}: none of the recordings of {seen.train_split} can be read. Import it again.")
    seen.audio_rate = Counter(rates).most_common(1)[0][0]
    seen.audio_seconds = sorted(seconds)[int(0.99 * (len(seconds) - 1))]
    seen.lines.append(f"recordings: {seen.audio_rate} Hz, 99 of 100 are at most {seen.audio_seconds:.2f} s long")
    seen.texts = _texts(split.texts, "text")
    _images(seen, split.images)


def _images(seen: Seen, images: Rows) -> None:
    sides = []
    for row in _spread(len(images), MOST_IMAGES):
        try:
            sides.append(min(open_image(images.value("image", row)).size))
        except UnreadableImage:
            continue  # training names it, and skips it if it may
    if not sides:
        raise UserError(f"{seen.path}: none of the images of {seen.train_split} can be read. Import it again.")
    seen.image_side = int(statistics.median(sides))
    sizes = f"{min(sides)} to {max(sides)} pixels, half of them {seen.image_side} or more"
    seen.lines.append(f"images: the shorter side has {sizes if min(sides) < max(sides) else f'{max(sides)} pixels'}")


def _texts(rows: ArrowRows, column: str) -> list[str]:
    return [rows.value(column, row) for row in _spread(len(rows), MOST_TEXTS)]


def _spread(count: int, most: int) -> range:
    return range(0, count, max(1, -(-count // most)))


def as_dict(seen: Seen) -> dict[str, Any]:
    """For --json: figures, without the texts themselves."""
    return {
        name: value for name, value in vars(seen).items() if name not in ("texts", "lines") and value not in (None, {})
    }
