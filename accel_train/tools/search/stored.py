"""Features that `accel-train embed` wrote, to be searched as they are."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from accel_train.config.contrastive import PairData
from accel_train.data.dataset import Dataset
from accel_train.data.feature_file import KINDS, FeatureFile, read_features
from accel_train.errors import UserError
from accel_train.models.weights_digest import digest_of_weights
from accel_train.tools.search.asked import Asked
from accel_train.tools.search.collection import (
    Collection,
    FolderImages,
    SplitImages,
    SplitTexts,
    chosen_kinds,
    data_of_split,
)
from accel_train.tools.search.encoder import Encoder


class Stored:
    """Items of one kind of a file. What they look like is known as far as `shown`, the source they are from, is given."""

    def __init__(self, file: str, content: FeatureFile, kind: str, shown: Collection | None) -> None:
        features = content.features(kind)
        assert features is not None
        self.kind = kind
        self.name = f"{kind}s of {file} ({content.dataset})"
        self.location = str(Path(file).resolve())
        self.ids: Sequence[str] = content.ids(kind)
        self.stamps: Sequence[str] = [""] * len(self.ids)
        self.features: Tensor = features
        self.token = content.identity
        self._shown = shown
        self._rows = {} if shown is None else {id_: row for row, id_ in enumerate(shown.ids)}
        self._is_texts = kind == "text" and content.fingerprint is None

    def dataset(self) -> Dataset:
        raise UserError(f"{self.name}: the features are there already.")

    def content(self, row: int) -> bytes | str | None:
        if self._is_texts:
            return self.ids[row]
        # An id is looked up, never joined to a path: a file from others may name any path.
        found = self._rows.get(self.ids[row])
        return None if found is None or self._shown is None else self._shown.content(found)


def open_stored(asked: Asked, encoder: Encoder) -> dict[str, Collection]:
    """The file's items by kind. Raises UserError for features of other weights, and for another source beside the file."""
    assert asked.features is not None
    content = read_features(asked.features)
    if content.weights != digest_of_weights(encoder.model):
        raise UserError(
            f"{asked.features} holds features by other weights ({content.source or 'unknown'}) than those of "
            f"{encoder.source}, so they can't be compared. Search with that model, or embed again with this one."
        )
    there = [kind for kind in KINDS if content.features(kind) is not None]
    shown = _shown(asked, content, encoder.config.data)
    return {kind: Stored(asked.features, content, kind, shown.get(kind)) for kind in chosen_kinds(asked, there)}


def _shown(asked: Asked, content: FeatureFile, data: PairData) -> dict[str, Collection]:
    """What the source named beside the file holds."""
    if asked.images is not None:
        images = FolderImages(asked.images, data)
        if not set(images.ids) & set(content.image_ids):
            raise UserError(f"--images: {asked.images} holds none of the images of {asked.features}.")
        return {"image": images}
    if asked.split is None:
        return {}
    own = data_of_split(asked, data)
    split_images, split_texts = SplitImages(own, asked.split), SplitTexts(own, asked.split)
    if split_images.fingerprint != content.fingerprint:
        raise UserError(
            f"--split: {own.path}, split {asked.split}, is not what {asked.features} was made from ({content.dataset})."
        )
    return {"image": split_images, "text": split_texts}
