"""Keys of the task `sequence_classification`: texts with one label each."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from accel_train.config.inputs import PaddedText, TextInput
from accel_train.config.schema import DataSection, RunConfig, Section, Share, exactly_one


class ClassifierSection(Section):
    """Any sequence classifier of transformers: LLaMA-like decoders, BERT and its kin."""

    pretrained: str | None = None
    """A Hugging Face folder with weights. A head that doesn't fit the labels is drawn anew. Exactly one of `pretrained` and
    `architecture`."""
    architecture: str | None = None
    """A transformers model type (llama, mistral, qwen2, bert) with random weights."""
    config: dict[str, Any] = {}
    """Values of the architecture's own configuration, for example `num_hidden_layers: 2`. vocab_size, pad_token_id and the
    labels come from the data. Only with `architecture`."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None
    """Attention implementation. Left out: the model's own default (sdpa where it has one)."""


class TextAugmentation(Section):
    """Training-time augmentation; each draw is a function of (seed, epoch, sample)."""

    mask_tokens: Share = 0.0
    """Probability for each token to be replaced by the tokenizer's mask token."""


class LabelledTextData(DataSection, TextInput, PaddedText):
    """Texts with a label each."""

    augmentation: TextAugmentation = TextAugmentation()
    length_window: Annotated[int, Field(ge=0)] = 0
    """So many global batches' samples are sorted by length together and cut into batches of like length, which are then
    shuffled: less padding, less random batches. 1 sorts inside each batch alone. 0: off."""


class ClassificationLossSection(Section):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of the target is spread evenly over all classes."""


class SequenceClassificationConfig(RunConfig):
    """Classification of texts."""

    task: Literal["sequence_classification"]
    model: ClassifierSection
    data: LabelledTextData
    loss: ClassificationLossSection = ClassificationLossSection()

    def contradictions(self) -> Iterator[str]:
        yield from exactly_one("model.", self.model, "pretrained", "architecture")
        if self.model.pretrained is not None and self.model.config:
            yield (
                f"model.config: {self.model.config!r} would be ignored beside model.pretrained "
                f"({self.model.pretrained!r}), whose folder holds its own. Take it out, or use architecture."
            )
        if not self.data.tokenizer.strip():
            yield f"data.tokenizer: found {self.data.tokenizer!r}; it must not be empty."
        if self.data.length_window and not self.data.shuffle:
            yield (
                f"data.length_window: {self.data.length_window} contradicts data.shuffle: false, which keeps the stored "
                "order. Set length_window to 0, or shuffle to true."
            )
