"""Image files of any folder and lines of a text file, as datasets: what is embedded or classified without an import."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from accel_train.config.inputs import ImageInput
from accel_train.data.dataset import UnreadableSample
from accel_train.data.readers.records import BadValue, read_bounded, text_lines
from accel_train.data.readers.rows import IMAGE_ENDINGS
from accel_train.data.text import CaptionTokenizer
from accel_train.data.transforms import UnreadableImage, evaluation_image
from accel_train.errors import UserError


def find_images(folder: str) -> list[str]:
    """Paths of all image files below a folder, relative to it and sorted; hidden files are left out. Raises UserError."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder} is not a folder with images.")
    files = (path for path in root.rglob("*") if path.name.lower().endswith(IMAGE_ENDINGS) and path.is_file())
    relative = (path.relative_to(root) for path in files)
    found = sorted(path.as_posix() for path in relative if not any(part.startswith(".") for part in path.parts))
    if not found:
        raise UserError(f"{folder} holds no image files ({', '.join(IMAGE_ENDINGS)}).")
    return found


def read_lines(path: str) -> list[str]:
    """The texts of a file, one a line. Raises UserError for a line that is empty or not UTF-8, and for no lines."""
    try:
        lines = list(text_lines(Path(path)))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}. Give a text file with one text a line.") from error
    texts = []
    for where, text in lines:
        if text is None or not text.strip():
            raise UserError(f"{where}: {'not UTF-8' if text is None else 'an empty line'}; there is one text a line.")
        texts.append(text)
    if not texts:
        raise UserError(f"{path}: the file is empty; it must hold one text a line.")
    return texts


class ImageFiles:
    """Image files without augmentation; row k is names[k]. Columns: pixel_values and sample_id as in ImageDataset.

    The fingerprint is of names, sizes and times of the files: their contents are not read for it.
    """

    def __init__(self, folder: str, names: list[str], image_input: ImageInput) -> None:
        self._folder = Path(folder)
        self._names = names
        self._input = image_input
        digest = hashlib.sha256()
        for name in names:
            status = (self._folder / name).stat()
            digest.update(f"{name}\n{status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = f"image files {digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        path, how = self._folder / self._names[row], self._input
        try:
            pixels = evaluation_image(read_bounded(path, "it"), how.image_size, how.resize, how.decoding)
        except (BadValue, UnreadableImage) as error:
            raise UnreadableSample(f"{path}: {error}") from error
        return {"pixel_values": pixels, "sample_id": torch.tensor(row)}


class TextLines:
    """Texts from memory. Columns: input_ids, attention_mask and sample_id as in TextDataset."""

    def __init__(self, texts: list[str], tokenizer: CaptionTokenizer) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self.fingerprint = f"text lines {hashlib.sha256(chr(10).join(texts).encode()).hexdigest()}"

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        input_ids, attention_mask = self._tokenizer.encode(self._texts[row])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "sample_id": torch.tensor(row)}
