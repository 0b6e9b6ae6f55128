"""Spoken images with the tokens of their caption as a decoder writes them: no start tokens, an end token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from accel_train.config.multimodal_llm import CaptionData
from accel_train.data.speech import KEYS, SpokenImages, speech_tokenizer
from accel_train.data.spoken_split import SpokenSplit
from accel_train.data.text import CaptionTokenizer
from accel_train.errors import UserError


@dataclass(frozen=True)
class CaptionTokens:
    """A tokenizer, and the tokens with which a sequence starts and a caption ends."""

    tokenizer: CaptionTokenizer
    start_ids: tuple[int, ...]
    end_id: int
    max_length: int
    """Tokens of a caption, its end included."""

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """Ids of the caption and its end, filled up with padding, and a mask of what counts, both (max_length,) int64.

        A caption that is too long is cut, and ends there.
        """
        ids = _ids(self.tokenizer, text)[len(self.start_ids) :]
        if ids and ids[-1] == self.end_id:
            ids.pop()
        ids = [*ids[: self.max_length - 1], self.end_id]
        missing = self.max_length - len(ids)
        return torch.tensor(ids + [self.pad_id] * missing), torch.tensor([1] * len(ids) + [0] * missing)

    def decode(self, ids: list[int]) -> str:
        """The text before the end token."""
        return self.tokenizer.decode(ids[: ids.index(self.end_id)] if self.end_id in ids else ids)


def caption_tokens(data: CaptionData) -> CaptionTokens:
    """The tokenizer of a run with its start and end tokens. Raises UserError where no end token is known."""
    tokenizer = speech_tokenizer(data)
    empty, text = _ids(tokenizer, ""), _ids(tokenizer, "a")
    if data.end_token is not None:
        end_id = tokenizer.vocabulary().get(data.end_token)
        if end_id is None:
            raise UserError(f"data.end_token: {data.end_token!r} is not in the vocabulary of data.tokenizer.")
    elif empty and text[-1] == empty[-1]:
        end_id = empty[-1]
    else:
        raise UserError(
            f"data.end_token: missing, and the tokenizer {data.tokenizer} puts no token at the end of a text. Name the one "
            "that ends a caption, for example </s>."
        )
    start_ids = tuple(empty[:-1] if empty and empty[-1] == end_id else empty)
    return CaptionTokens(tokenizer, start_ids, end_id, data.max_text_length - len(start_ids))


def _ids(tokenizer: CaptionTokenizer, text: str) -> list[int]:
    """Without padding."""
    with torch.device("cpu"):  # a model may be about to be built on another one, without values
        ids, mask = tokenizer.encode(text)
    found: list[int] = ids[mask.bool()].tolist()
    return found


class CaptionDataset:
    """One row for each sample of a split, the image augmented for training.

    Columns: those of the modalities that the decoder is given, input_ids and is_target int64 (max_length,), sample_id.
    """

    def __init__(self, data: CaptionData, split: str, *, seed: int, senses: tuple[str, ...]) -> None:
        self._parts = SpokenImages(data, split, seed=seed, kinds=senses)
        self.split: SpokenSplit = self._parts.split
        self.fingerprint = f"captions of spoken images {self._parts.fingerprint}"
        self._senses = senses
        self._tokens = caption_tokens(data)

    def __len__(self) -> int:
        return self.split.num_samples

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        rows = {kind: self.split.samples.value(f"{kind}_row", row) for kind in KEYS}
        input_ids, is_target = self._tokens.encode(self.split.texts.value("text", rows["text"]))
        columns = {"input_ids": input_ids, "is_target": is_target, "sample_id": torch.tensor(row)}
        if "image" in self._senses:
            columns |= self._parts.image(rows["image"], row, epoch)
        if "audio" in self._senses:
            columns |= self._parts.audio(rows["audio"])
        return columns
