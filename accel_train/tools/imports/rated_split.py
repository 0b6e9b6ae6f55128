"""Rated images of a source on their way into the splits of a dataset."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accel_train.data.arrow_writer import content_key
from accel_train.data.rated_images import RATINGS
from accel_train.data.rated_writer import RatedSplitWriter
from accel_train.data.readers.ratings import RatedRecord
from accel_train.data.readers.records import BadRecord
from accel_train.data.split_import import CHECK_SIZE, VALID_SPLIT, BadRecords, is_on_valid_side
from accel_train.data.transforms import UnreadableImage, decode, open_image
from accel_train.errors import UserError

Range = tuple[float, float]


@dataclass
class RatedImport:
    """Images go straight to the files; ratings wait, because their range may have to be found first."""

    folder: Path
    valid_share: float | None
    bad: BadRecords
    writers: dict[str, RatedSplitWriter] = field(default_factory=dict)
    images: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """Row and key of the content, by split and image id."""
    groups: dict[int, str | None] = field(default_factory=dict)
    """The group of each image, by the key of its content."""
    samples: list[tuple[str, int, RatedRecord]] = field(default_factory=list)
    """Split, image row, and the record without its image."""

    def add(self, split: str, record: RatedRecord | BadRecord) -> None:
        """Checks one record of a split of the source."""
        if isinstance(record, BadRecord):
            self.bad.add(record.where, record.reason)
            return
        key = content_key(record.image)
        if self.valid_share is not None:
            if self.groups.setdefault(key, record.group) != record.group:
                before = self.groups[key]
                self.bad.add(record.where, f"the image {record.image_id} came before in group {before!r}")
                return
            group = record.image if record.group is None else record.group.encode()
            split = VALID_SPLIT if is_on_valid_side(group, self.valid_share) else split
        row = self._image_row(split, record, key)
        if row is not None:
            self.samples.append((split, row, replace(record, image=b"")))

    def _image_row(self, split: str, record: RatedRecord, key: int) -> int | None:
        known = self.images.get((split, record.image_id))
        if known is not None and known[1] != key:
            self.bad.add(record.where, f"the image {record.image_id} came before with another content")
            return None
        if known is None:
            try:
                decode(open_image(record.image), size=CHECK_SIZE)
            except UnreadableImage as error:
                self.bad.add(record.where, f"image {record.image_id!r}: {error}")
                return None
            known = self.writer(split).add_image(record.image_id, record.image), key
            self.images[split, record.image_id] = known
        return known[0]

    def writer(self, split: str) -> RatedSplitWriter:
        if split not in self.writers:
            self.writers[split] = RatedSplitWriter(self.folder / split)
        return self.writers[split]

    def ranges(self, given: Range | None, source: str) -> dict[str, Range]:
        """What becomes 0 and 1: a given range, beyond which records are bad, or the smallest and largest of each rating."""
        if given is not None:
            self.samples = [sample for sample in self.samples if self._is_inside(sample[2], given)]
            return dict.fromkeys(RATINGS, given)
        found: dict[str, Range] = {}
        for name in RATINGS:
            values = [record.ratings[name] for _, _, record in self.samples] or [0.0, 1.0]
            found[name] = min(values), max(values)
            if found[name][0] == found[name][1]:
                raise UserError(
                    f"{source}: every rating of {name} is {values[0]:g}, so no range can be found. If that is right, give "
                    "the scale with --rating-range."
                )
        return found

    def _is_inside(self, record: RatedRecord, given: Range) -> bool:
        outside = [name for name, rating in record.ratings.items() if not given[0] <= rating <= given[1]]
        for name in outside[:1]:
            self.bad.add(record.where, f"{name} is {record.ratings[name]:g}, outside {given[0]:g} to {given[1]:g}")
        return not outside

    def finish(self, ranges: dict[str, Range]) -> dict[str, dict[str, Any]]:
        """Writes the ratings from 0 to 1 and closes the files; returns what dataset.json says of each split."""
        for split, row, record in self.samples:
            ratings = {name: _scaled(record.ratings[name], ranges[name]) for name in RATINGS}
            self.writers[split].add_sample(row, record.prompt, ratings, record.explanation)
        return {split: writer.close() for split, writer in sorted(self.writers.items())}

    def num_shared_images(self) -> int:
        splits: dict[int, set[str]] = {}
        for (split, _), (_, key) in self.images.items():
            splits.setdefault(key, set()).add(split)
        return sum(len(found) > 1 for found in splits.values())


def _scaled(rating: float, range_: Range) -> float:
    return (rating - range_[0]) / (range_[1] - range_[0])
