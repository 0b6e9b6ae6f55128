"""Writes one split in the format that `rated_images.py` reads."""

import hashlib
from pathlib import Path
from typing import Any

from accel_train.data.arrow_writer import TableWriter, content_key
from accel_train.data.rated_images import RATED_SCHEMAS, RATINGS


class RatedSplitWriter:
    """Appends images and samples, and hashes all of it into the fingerprint."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._tables = {name: TableWriter(folder / f"{name}.arrow", schema) for name, schema in RATED_SCHEMAS.items()}
        self._digest = hashlib.blake2b(digest_size=16)
        self._totals = dict.fromkeys(RATINGS, 0.0)
        self.num_images = self.num_samples = self.num_explanations = 0

    def add_image(self, image_id: str, image: bytes) -> int:
        """Returns the image's row."""
        key = content_key(image)
        self._tables["images"].append(image_id, image, key)
        self._digest.update(f"image {image_id}\n{key}\n".encode())
        self.num_images += 1
        return self.num_images - 1

    def add_sample(self, image_row: int, prompt: str, ratings: dict[str, float], explanation: str | None) -> None:
        """A prompt for an image with its ratings, from 0 to 1."""
        values = [ratings[name] for name in RATINGS]
        self._tables["samples"].append(image_row, prompt, *values, explanation)
        self._digest.update(f"sample {image_row} {values!r}\n{prompt}\n{explanation!r}\n".encode())
        for name in RATINGS:
            self._totals[name] += ratings[name]
        self.num_samples += 1
        self.num_explanations += explanation is not None

    def close(self) -> dict[str, Any]:
        """Finishes the files; returns what dataset.json says of this split."""
        for table in self._tables.values():
            table.close()
        return {
            "num_images": self.num_images,
            "num_samples": self.num_samples,
            "num_explanations": self.num_explanations,
            **{f"mean_{name}": total / max(self.num_samples, 1) for name, total in self._totals.items()},
            "fingerprint": self._digest.hexdigest(),
        }
