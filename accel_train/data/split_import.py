"""Checks the records of one split of a source and writes them in the dataset format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_train.data.arrow_writer import SplitWriter, content_key
from accel_train.data.readers.records import BadRecord, ImageRecord, Record, TextRecord
from accel_train.data.transforms import UnreadableImage, decode, open_image
from accel_train.errors import UserError
from accel_train.visible import visible

MAX_LISTED = 100
"""Bad records that are listed; the rest is only counted."""
CHECK_SIZE = 32
"""Images are decoded at the smallest scale the format offers down to this: all of their data is still read."""
VALID_SPLIT = "valid"


@dataclass
class BadRecords:
    """Bad records of all splits: counted, the first ones listed."""

    count: int = 0
    listed: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(visible(f"{where}: {reason}"))

    def refuse_beyond(self, allowed: int, source: str, remedy: str | None = None) -> None:
        """Raises UserError, with the list, if there are more than are allowed: `--max-bad-records` of an import, which the
        remedy names."""
        if self.count > allowed:
            more = f"\n... and {self.count - len(self.listed)} more" if self.count > len(self.listed) else ""
            rule = f", and --max-bad-records is {allowed}" if remedy is None else ""
            remedy = remedy or "Repair the source, or allow that many to be left out."
            raise UserError(
                f"{source}: {self.count} bad records{rule}. {remedy}\n" + "\n".join(self.listed) + more, code="AT506"
            )


class SplitImport:
    """One split of the source becomes one of the dataset, or with a `valid_share` two: itself and `valid`.

    Ids and captions are held in memory, some hundred bytes a caption; images go straight to the file. `in_place`: they stay
    in the source and are not decoded.
    """

    def __init__(
        self, folder: Path, split: str, valid_share: float | None, bad: BadRecords, *, in_place: bool = False
    ) -> None:
        self._split = split
        self._valid_share = valid_share
        self._bad = bad
        self._in_place = in_place
        names = [split] if valid_share is None else [split, VALID_SPLIT]
        self._writers = {name: SplitWriter(folder / name, in_place=in_place) for name in names}
        self._images: dict[str, tuple[str, int]] = {}
        self._bad_image_ids: set[str] = set()
        self._texts: dict[str, TextRecord] = {}
        self.captions: list[str] = []
        """Captions written to the split itself, after `finish`."""
        self.num_captions_dropped = 0
        """Captions left out because all their images were bad, after `finish`."""

    def add(self, record: Record) -> None:
        """Images are written at once; captions wait until all images are known."""
        if isinstance(record, ImageRecord):
            self._add_image(record)
        elif isinstance(record, TextRecord):
            self._add_text(record)
        else:
            self._refuse(record)

    def _add_image(self, record: ImageRecord) -> None:
        if record.image_id in self._images:
            self._bad.add(record.where, f"image id {record.image_id!r} came before")
            return
        try:
            if not self._in_place:
                decode(open_image(record.image), size=CHECK_SIZE)
        except UnreadableImage as error:
            self._refuse(BadRecord(record.where, f"image {record.image_id!r}: {error}", record.image_id))
            return
        split = self._side(record.image)
        self._images[record.image_id] = (
            split,
            self._writers[split].add_image(record.image_id, record.image, record.place),
        )

    def _add_text(self, record: TextRecord) -> None:
        known = self._texts.get(record.text_id)
        if known is None:
            self._texts[record.text_id] = record
        elif not record.is_pair or set(record.image_ids) & set(known.image_ids):
            self._bad.add(record.where, f"text id {record.text_id!r} came before")
        elif known.text != record.text:
            self._bad.add(record.where, f"text id {record.text_id!r} came before with another caption")
        else:
            image_ids = known.image_ids + record.image_ids
            self._texts[record.text_id] = TextRecord(known.where, known.text_id, known.text, image_ids, is_pair=True)

    def _refuse(self, record: BadRecord) -> None:
        self._bad.add(record.where, record.reason)
        if record.image_id is not None:
            self._bad_image_ids.add(record.image_id)

    def _side(self, image: bytes) -> str:
        """By content, so copies of one image never stand on both sides, and the order of records does not matter."""
        if self._valid_share is not None and is_on_valid_side(image, self._valid_share):
            return VALID_SPLIT
        return self._split

    def finish(self) -> dict[str, dict[str, Any]]:
        """Writes the captions and closes the files; returns what dataset.json says of each split."""
        for record in self._texts.values():
            self._write_text(record)
        return {name: writer.close() for name, writer in self._writers.items()}

    def _write_text(self, record: TextRecord) -> None:
        unknown = [name for name in record.image_ids if name not in self._images and name not in self._bad_image_ids]
        if unknown or len(set(record.image_ids)) < len(record.image_ids):
            reason = f"names the image {unknown[0]!r}, which is not there" if unknown else "names an image twice"
            self._bad.add(record.where, f"text {record.text_id!r} {reason}")
            return
        rows: dict[str, list[int]] = {}
        for image_id in record.image_ids:
            if image_id in self._images:
                split, row = self._images[image_id]
                rows.setdefault(split, []).append(row)
        if not rows:
            self.num_captions_dropped += 1
        for split, image_rows in rows.items():
            self._writers[split].add_text(record.text_id, record.text, image_rows)
            if split == self._split:
                self.captions.append(record.text)


def is_on_valid_side(content: bytes, share: float) -> bool:
    """Whether what has this content goes to the split `valid`, as about `share` (0 to 1) of all contents do."""
    return content_key(content + b"side") < share * 2**63
