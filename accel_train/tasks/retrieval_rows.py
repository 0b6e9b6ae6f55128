"""The matches of a split, and what a retrieval model finds for each of its texts, as rows of a table."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from accel_train.data.splits import open_split
from accel_train.errors import UserError
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


def without_match(path: str, split: str) -> list[str]:
    """A line about the images that no text belongs to, if there are any. Raises UserError for a text without an image."""
    opened = open_split(path, split)
    images, texts = (
        (torch.bincount(rows, minlength=num) == 0).nonzero().flatten()
        for rows, num in zip(opened.matches().T, (opened.num_images, opened.num_texts), strict=True)
    )
    if len(texts):
        raise UserError(
            f"data.path: {path}, split {split}: {len(texts)} of {opened.num_texts} captions have no image, so recall can't "
            f"be taken; the first is text_id {opened.texts.value('text_id', int(texts[0]))}. Leave them out."
        )
    if len(images):
        first = opened.images.value("image_id", int(images[0]))
        return [
            f"{split}: {len(images):,} of {opened.num_images:,} images have no caption, the first is image_id {first}: "
            "captions are compared with them, but none is sought for them"
        ]
    return []
