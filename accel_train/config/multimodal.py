"""Keys that both phases of a multimodal language model share: encoders of images and speech, and the data."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from accel_train.config.contrastive import Backbone
from accel_train.config.inputs import CropAndFlip, ImageInput, TextInput
from accel_train.config.schema import DataSection, Section, exactly_one


class AudioBackbone(Backbone):
    """An audio encoder of transformers: Whisper's, or one that reads the waveform (wav2vec2, hubert, wavlm)."""

    type: Literal["transformers"]


class LogMelConv(Section):
    """Convolutions over a log-mel spectrogram; each layer halves the number of frames."""

    type: Literal["log_mel_conv"]
    num_mels: Annotated[int, Field(ge=8)] = 64
    window_ms: Annotated[int, Field(ge=5)] = 25
    """Length of a spectrum's window, in milliseconds."""
    hop_ms: Annotated[int, Field(ge=1)] = 10
    """From one spectrum to the next."""
    num_layers: Annotated[int, Field(ge=1)] = 3
    width: Annotated[int, Field(ge=8)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


AudioSection = Annotated[LogMelConv | AudioBackbone, Field(discriminator="type")]


class AlignerSection(Section):
    """One map for each modality, from its encoder's width into the shared space."""

    dim: Annotated[int, Field(ge=1)] = 512
    """Width of the shared space."""
    hidden: Annotated[int, Field(ge=1)] | None = None
    """Width of a hidden layer. null: a linear map."""


class SpokenImageData(DataSection, ImageInput, TextInput):
    """Images that are spoken about and captioned, as `accel-train import --task multimodal_llm` writes them."""

    sample_rate: Annotated[int, Field(ge=1000)] = 16000
    """Samples a second that the audio encoder reads; recordings of another rate are resampled."""
    max_audio_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A recording is cut or padded with silence to this length."""
    augmentation: CropAndFlip = CropAndFlip()
    features: str | None = None
    """A folder with SPLIT.safetensors for the splits in use, the frozen encoders' outputs as `accel-train embed` wrote them.
    They are read instead of images, recordings and captions. null: the encoders run in every step."""

    @property
    def num_audio_samples(self) -> int:
        """Samples of every recording after resampling, cutting and padding."""
        return round(self.max_audio_seconds * self.sample_rate)


def backbone_rules(where: str, section: Backbone | LogMelConv | None) -> Iterator[str]:
    """Contradictions within a backbone's section; `where` is its path with a dot at its end."""
    if not isinstance(section, Backbone):
        return
    yield from exactly_one(where, section, "pretrained", "architecture")
    if section.config and section.pretrained is not None:
        yield (
            f"{where}config: {section.config!r} would be ignored beside {where}pretrained ({section.pretrained!r}), "
            "whose folder holds its own. Take it out, or use architecture."
        )


def features_rules(data: SpokenImageData) -> Iterator[str]:
    """Contradictions between `data.features` and the rest of the data's section."""
    if data.features is None:
        return
    if data.augmentation.crop_scale is not None or data.augmentation.horizontal_flip > 0:
        yield (
            "data.features: stored features are those of images without augmentation, so data.augmentation would be "
            "ignored. Take one of them out."
        )


def tokenizer_rule(data: SpokenImageData) -> Iterator[str]:
    if not data.tokenizer.strip():
        yield f"data.tokenizer: found {data.tokenizer!r}; it must not be empty."
