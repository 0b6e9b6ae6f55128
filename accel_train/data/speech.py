"""Spoken images over one split: samples for training, and each image, recording and text once for retrieval."""

import torch
from torch import Tensor

from accel_train.config.multimodal import SpokenImageData
from accel_train.data.augmented_image import image_of_row
from accel_train.data.dataset import UnreadableSample
from accel_train.data.encoder_features import EncoderFeatures, open_encoder_features
from accel_train.data.spoken_split import SpokenSplit, open_spoken_split
from accel_train.data.text import CaptionTokenizer, open_tokenizer
from accel_train.data.tokenizer_files import find_tokenizer
from accel_train.data.wav import UnreadableAudio, fit_length, read_wav, resample

MODALITIES = ("image", "audio", "text")
KEYS = {"image": ("images", "image_key"), "audio": ("recordings", "audio_key"), "text": ("texts", "text_key")}


def speech_tokenizer(data: SpokenImageData) -> CaptionTokenizer:
    """The tokenizer of a run."""
    return open_tokenizer(find_tokenizer(data.tokenizer, data.path), data.max_text_length, cleaning=data.text_cleaning)


class SpokenImages:
    """Reads what a split holds of the modalities in `kinds`, one at a time.

    pixel_values uint8 (3, image_size, image_size); waveform fp32 (data.num_audio_samples,) from -1 to 1, and
    num_audio_samples, how many of them are real; input_ids and attention_mask int64 (max_text_length,). With data.features
    instead image_vector, audio_vector and text_vector fp32 (W,), what the encoders give for them.
    """

    def __init__(self, data: SpokenImageData, split: str, *, seed: int, kinds: tuple[str, ...]) -> None:
        self.split: SpokenSplit = open_spoken_split(data.path, split)
        self._data = data
        self._seed = seed
        self._tokenizer = speech_tokenizer(data)
        self._stored: EncoderFeatures | None = None
        if data.features is not None:
            self._stored = open_encoder_features(data.features, self.split, kinds)

    @property
    def fingerprint(self) -> str:
        """The split's, and where features are stored, of which encoders."""
        stored = "" if self._stored is None else f", features {self._stored.identity}"
        return f"{self.split.fingerprint}{stored}"

    def image(self, row: int, sample: int, epoch: int | None) -> dict[str, Tensor]:
        """Augmented as this sample of this epoch; without an epoch not at all."""
        if self._stored is not None:
            return {"image_vector": self._stored.vectors["image"][row]}
        pixels = image_of_row(
            self.split.images,
            row,
            self._data,
            self._data.augmentation,
            split=self.split.name,
            seed=self._seed,
            epoch=epoch,
            sample=sample,
        )
        return {"pixel_values": pixels}

    def audio(self, row: int) -> dict[str, Tensor]:
        if self._stored is not None:
            return {"audio_vector": self._stored.vectors["audio"][row]}
        try:
            samples, rate = read_wav(self.split.recordings.value("audio", row))
        except UnreadableAudio as error:
            name = self.split.recordings.value("audio_id", row)
            raise UnreadableSample(f"{self.split.name}: recording {name!r}: {error}") from error
        waveform, real = fit_length(resample(samples, rate, self._data.sample_rate), self._data.num_audio_samples)
        return {"waveform": torch.from_numpy(waveform), "num_audio_samples": torch.tensor(real)}

    def text(self, row: int) -> dict[str, Tensor]:
        if self._stored is not None:
            return {"text_vector": self._stored.vectors["text"][row]}
        input_ids, attention_mask = self._tokenizer.encode(self.split.texts.value("text", row))
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class SpokenImageDataset:
    """One row for each sample of a split, the image augmented for training.

    Columns: those of all three modalities, and the scalars image_key, audio_key, text_key, sample_id.
    """

    def __init__(self, data: SpokenImageData, split: str, *, seed: int) -> None:
        self.parts = SpokenImages(data, split, seed=seed, kinds=MODALITIES)
        self.fingerprint = f"spoken images {self.parts.fingerprint}"

    def __len__(self) -> int:
        return self.parts.split.num_samples

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        split = self.parts.split
        rows = {kind: split.samples.value(f"{kind}_row", row) for kind in MODALITIES}
        return {
            **self.parts.image(rows["image"], row, epoch),
            **self.parts.audio(rows["audio"]),
            **self.parts.text(rows["text"]),
            **{key: torch.tensor(vars(split)[table].value(key, rows[kind])) for kind, (table, key) in KEYS.items()},
            "sample_id": torch.tensor(row),
        }


class OneModality:
    """Every image, recording or text of a split once, without augmentation. Columns: the modality's own, sample_id."""

    def __init__(self, data: SpokenImageData, split: str, kind: str) -> None:
        self._parts = SpokenImages(data, split, seed=0, kinds=(kind,))
        self._kind = kind
        self.fingerprint = f"{kind} of spoken images {self._parts.fingerprint}"

    def __len__(self) -> int:
        return len(vars(self._parts.split)[KEYS[self._kind][0]])

    def read(self, row: int, epoch: int | None) -> dict[str, Tensor]:
        if self._kind == "image":
            columns = self._parts.image(row, row, None)
        else:
            columns = self._parts.audio(row) if self._kind == "audio" else self._parts.text(row)
        return columns | {"sample_id": torch.tensor(row)}
