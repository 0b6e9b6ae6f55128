"""What is searched: images of a folder or a split, captions of a split, lines of a file.

Each item has an id and a stamp. As long as both are the same, so is the item, and its feature need not be computed again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from accel_train.config.contrastive import PairData
from accel_train.data.arrow_split import dataset_folder
from accel_train.data.dataset import Dataset
from accel_train.data.loose_files import ImageFiles, TextLines, find_images, read_lines
from accel_train.data.pairs import ImageDataset, TextDataset, caption_tokenizer, tokenizer_path
from accel_train.data.readers.records import BadValue, read_bounded
from accel_train.data.splits import open_split
from accel_train.errors import UserError
from accel_train.tools.search.asked import Asked


class Collection(Protocol):
    """Items of one kind. Row k has ids[k] and stamps[k]."""

    kind: str
    name: str
    """In words."""
    location: str
    """The same for the same source, wherever the command is given."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def stamps(self) -> Sequence[str]: ...

    def dataset(self) -> Dataset:
        """The items as the model reads them, row by row. Raises UserError."""
        ...

    def content(self, row: int) -> bytes | str | None:
        """An image, encoded as it was found, or a text. None: it is not there any more."""
        ...


class FolderImages:
    """Image files below a folder; an id is a path relative to it."""

    kind = "image"

    def __init__(self, folder: str, data: PairData) -> None:
        self.name = f"images of {folder}"
        self.location = str(Path(folder).resolve())
        self._folder, self._data = Path(folder), data
        self.ids: list[str] = []
        self.stamps: list[str] = []
        for name in find_images(folder):
            try:
                status = (self._folder / name).stat()
            except OSError:  # removed a moment ago
                continue
            self.ids.append(name)
            self.stamps.append(f"{status.st_size} {status.st_mtime_ns}")

    def dataset(self) -> Dataset:
        try:
            return ImageFiles(str(self._folder), self.ids, self._data)
        except OSError as error:
            raise UserError(
                f"{error.filename} was removed while the folder was read. Give the command again."
            ) from error

    def content(self, row: int) -> bytes | None:
        try:
            return read_bounded(self._folder / self.ids[row], "it")
        except BadValue:
            return None


class SplitImages:
    """Images of a split; the stamp is the hash of their bytes, so that an import anew costs nothing here."""

    kind = "image"

    def __init__(self, data: PairData, split: str) -> None:
        self.name = f"images of {data.path}, split {split}"
        self.location = f"{dataset_folder(data.path).resolve()}, split {split}"
        self._data, self._split = data, open_split(data.path, split)
        self.fingerprint = self._split.fingerprint
        self.ids: list[str] = self._split.images.column("image_id").tolist()
        self.stamps = [str(key) for key in self._split.images.column("image_key").tolist()]

    def dataset(self) -> Dataset:
        return ImageDataset(self._data, self._split.name)

    def content(self, row: int) -> bytes:
        encoded: bytes = self._split.images.value("image", row)
        return encoded


class SplitTexts:
    """Captions of a split; the stamp is the hash of the text."""

    kind = "text"

    def __init__(self, data: PairData, split: str) -> None:
        self.name = f"texts of {data.path}, split {split}"
        self.location = f"{dataset_folder(data.path).resolve()}, split {split}"
        self._data, self._split = data, open_split(data.path, split)
        self.ids: list[str] = self._split.texts.column("text_id").tolist()
        self.stamps = [str(key) for key in self._split.texts.column("text_key").tolist()]

    def dataset(self) -> Dataset:
        return TextDataset(self._data, self._split.name, whole_length=True)

    def content(self, row: int) -> str:
        text: str = self._split.texts.value("text", row)
        return text


class FileTexts:
    """Lines of a file, each text once; the text is its own id."""

    kind = "text"

    def __init__(self, file: str, data: PairData) -> None:
        self.name = f"texts of {file}"
        self.location = str(Path(file).resolve())
        self._data = data
        self.ids = list(dict.fromkeys(read_lines(file)))
        self.stamps = [""] * len(self.ids)

    def dataset(self) -> Dataset:
        return TextLines(self.ids, caption_tokenizer(self._data))

    def content(self, row: int) -> str:
        return self.ids[row]


def open_collections(asked: Asked, data: PairData) -> dict[str, Collection]:
    """What was asked for, by kind. `data` is the model's, and says how it reads images and texts. Raises UserError."""
    if asked.images is not None:
        found: dict[str, Collection] = {"image": FolderImages(asked.images, data)}
    elif asked.texts is not None:
        found = {"text": FileTexts(asked.texts, data)}
    else:
        assert asked.split is not None
        own = data_of_split(asked, data)
        found = {"image": SplitImages(own, asked.split), "text": SplitTexts(own, asked.split)}
    return {kind: found[kind] for kind in chosen_kinds(asked, list(found))}


def chosen_kinds(asked: Asked, there: list[str]) -> list[str]:
    """Of the kinds that are there, those to search. Raises UserError for one that is not."""
    if asked.kinds is None:
        return there[:1]
    kinds = [kind for kind in there if kind in asked.kinds]
    if not kinds:
        raise UserError(f"--find {asked.kinds[0]}s: what is searched holds {there[0]}s alone.")
    return kinds


def data_of_split(asked: Asked, data: PairData) -> PairData:
    """The model's way to read, of another dataset."""
    path = asked.data or data.path
    # Another dataset may have a tokenizer of its own: the model knows the one it was trained with.
    return data.model_copy(update={"path": path, "tokenizer": tokenizer_path(data)})
