"""What a retrieval model finds for each text of a split, as rows of a table."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from accel_train.data.splits import open_split
from accel_train.metrics.retrieval import match_ranks

NUM_FOUND = 5
CHUNK = 1024
"""Texts compared at once."""


def retrieval_rows(images: Tensor, texts: Tensor, path: str, split: str) -> Iterator[dict[str, Any]]:
    """A row for each text in the order of the split: the rank of its best match, from 1, and the nearest images.

    images (num_images, D) and texts (num_texts, D) are in the order of the split.
    """
    opened = open_split(path, split)
    ranks = match_ranks(texts, images, opened.matches().flip(1)) + 1
    image_ids = [str(opened.images.value("image_id", row)) for row in range(opened.num_images)]
    for start in range(0, len(texts), CHUNK):
        best = (texts[start : start + CHUNK] @ images.T).topk(min(NUM_FOUND, len(images)))
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        for row, (similarities, places) in enumerate(found, start):
            yield {
                "text_id": opened.texts.value("text_id", row),
                "text": opened.texts.value("text", row),
                "rank": int(ranks[row]),
                **{f"image_{place}": image_ids[image] for place, image in enumerate(places, 1)},
                **{f"similarity_{place}": round(value, 6) for place, value in enumerate(similarities, 1)},
            }
